//! A list of hosts that are reached without a proxy, in the words of each tool.

use ipnet::IpNet;

/// The hosts, as entries of a `NO_PROXY` in Go's reading.
#[derive(Clone, Debug)]
pub(super) struct Bypass(Vec<Entry>);

#[derive(Clone, Debug)]
enum Entry {
    Everything,
    /// An address, or one name.
    Exact(String),
    Net(IpNet),
    /// A name and all below it; without the name itself where `is_below` only.
    Domain {
        name: String,
        is_below: bool,
    },
    /// With a port.
    Port(String),
}

/// Whose reading a list is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// Many that nobody knows: what all read alike.
    Many,
    /// Programs in Go.
    Go,
    /// Java's `nonProxyHosts`.
    Java,
    /// One host each, and nothing else.
    Single,
}

impl Bypass {
    pub(super) fn read(list: &str) -> Self {
        let mut this = Self(Vec::new());
        this.add(list);
        this
    }

    pub(super) fn add(&mut self, list: &str) {
        for entry in list.split(',').map(str::trim) {
            let entry = entry.to_lowercase();
            let below = entry.strip_prefix("*.").or_else(|| entry.strip_prefix('.'));
            let bare = entry.trim_start_matches('[').trim_end_matches(']');
            let new = match &*entry {
                "" => continue,
                "*" => Entry::Everything,
                _ if bare.parse::<std::net::IpAddr>().is_ok() => Entry::Exact(bare.to_owned()),
                "localhost" => Entry::Exact(entry),
                _ if entry.contains('/') => match entry.parse::<IpNet>() {
                    Ok(net) => Entry::Net(net),
                    Err(_) => continue,
                },
                _ if entry.contains(':') => Entry::Port(entry),
                _ => Entry::Domain {
                    name: below.unwrap_or(&entry).trim_end_matches('.').to_owned(),
                    is_below: below.is_some(),
                },
            };
            self.0.push(new);
        }
    }

    /// The list as `reader` reads it, and what it cannot say.
    pub(super) fn told(&self, reader: Reader) -> (Vec<String>, Vec<String>) {
        let mut words: Vec<String> = Vec::new();
        let mut notes = Vec::new();
        for entry in &self.0 {
            match (entry, reader) {
                (Entry::Everything, Reader::Single) => {
                    notes.push("* cannot be said here: leave the proxy out".to_owned());
                }
                (Entry::Everything, _) if self.0.len() > 1 && reader == Reader::Many => {
                    // Alone, it is read by most.
                    return (
                        vec!["*".to_owned()],
                        vec!["* alone: wget and Ruby do not know it".to_owned()],
                    );
                }
                (Entry::Everything, _) => words.push("*".to_owned()),
                (Entry::Exact(host), Reader::Java) if host.contains(':') => {
                    words.push(format!("[{host}]"));
                }
                (Entry::Exact(host), _) => words.push(host.clone()),
                (Entry::Net(net), Reader::Go) => words.push(net.to_string()),
                (Entry::Net(IpNet::V6(net)), Reader::Many) => {
                    notes.push(format!(
                        "{net} is left out: httpx raises an error on a range of IPv6"
                    ));
                }
                (Entry::Net(net), Reader::Many) => {
                    words.push(net.to_string());
                    notes.push(format!(
                        "{net}: wget, urllib, httpx and Node do not know ranges and ask the proxy"
                    ));
                }
                (Entry::Net(net), Reader::Java) => match java_net(net) {
                    Some(word) => words.push(word),
                    None => notes.push(format!("{net} cannot be said here: only whole bytes can")),
                },
                (Entry::Net(net), Reader::Single) => {
                    notes.push(format!("{net} cannot be said here"));
                }
                (Entry::Domain { name, is_below }, Reader::Go) => {
                    words.push(if *is_below {
                        format!(".{name}")
                    } else {
                        name.clone()
                    });
                }
                (Entry::Domain { name, is_below }, Reader::Many) => {
                    if !is_below {
                        words.push(name.clone());
                    } else if !self.has(name) {
                        notes.push(format!(
                            ".{name}: curl, Python and .NET clients take {name} as well"
                        ));
                    }
                    words.push(format!(".{name}"));
                }
                (Entry::Domain { name, is_below }, Reader::Java) => {
                    if !is_below {
                        words.push(name.clone());
                    }
                    words.push(format!("*.{name}"));
                }
                (Entry::Domain { name, is_below }, Reader::Single) => {
                    if !is_below {
                        words.push(name.clone());
                    }
                    notes.push(format!("what lies below {name} cannot be said here"));
                }
                (Entry::Port(entry), Reader::Go) => words.push(entry.clone()),
                (Entry::Port(entry), _) => {
                    notes.push(format!("{entry} is left out: not all read ports"));
                }
            }
        }
        let mut seen = std::collections::BTreeSet::new();
        words.retain(|word| seen.insert(word.clone()));
        (words, notes)
    }

    fn has(&self, domain: &str) -> bool {
        self.0
            .iter()
            .any(|entry| matches!(entry, Entry::Domain { name, is_below: false } if name == domain))
    }
}

/// `10.*` of 10.0.0.0/8.
fn java_net(net: &IpNet) -> Option<String> {
    let IpNet::V4(net) = net else { return None };
    let bytes = match net.prefix_len() {
        8 => 1,
        16 => 2,
        24 => 3,
        _ => return None,
    };
    let octets = net.network().octets();
    let kept: Vec<_> = octets.iter().take(bytes).map(u8::to_string).collect();
    Some(format!("{}.*", kept.join(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(list: &str, reader: Reader, words: &str, notes: usize) {
        let (got, told) = Bypass::read(list).told(reader);
        assert_eq!(
            (got.join(","), told.len()),
            (words.to_owned(), notes),
            "{list}: {told:?}"
        );
    }

    #[test]
    fn a_list_is_told_in_the_words_of_its_reader() {
        let list = "localhost,::1,corp.example,.lab.example,10.0.0.0/8,10.1.0.0/12,2001:db8::/32,x.example:8443";
        check(
            list,
            Reader::Go,
            "localhost,::1,corp.example,.lab.example,10.0.0.0/8,10.1.0.0/12,2001:db8::/32,x.example:8443",
            0,
        );
        check(
            list,
            Reader::Many,
            "localhost,::1,corp.example,.corp.example,.lab.example,10.0.0.0/8,10.1.0.0/12",
            5,
        );
        check(
            list,
            Reader::Java,
            "localhost,[::1],corp.example,*.corp.example,*.lab.example,10.*",
            3,
        );
        check(list, Reader::Single, "localhost,::1,corp.example", 6);
        check("a.example,*", Reader::Many, "*", 1);
        check(
            "x.example,X.example.",
            Reader::Many,
            "x.example,.x.example",
            0,
        );
    }
}
