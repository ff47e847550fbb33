//! Values on the command line, as they are written.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::config::{self, Limits, ListenAt};

/// `host:port` with an address, or `:port` for every address.
pub(super) fn listen_address(text: &str) -> Result<ListenAt, String> {
    let spelled = if text.starts_with(':') {
        format!("[::]{text}")
    } else {
        text.to_owned()
    };
    ListenAt::parse(&spelled)
        .ok_or_else(|| "write an address and a port, as in 127.0.0.1:3128 or [::1]:3128".to_owned())
}

/// The same, of TCP.
fn socket_address(text: &str) -> Result<SocketAddr, String> {
    match listen_address(text)? {
        ListenAt::Tcp(address) => Ok(address),
        ListenAt::Unix(_) | ListenAt::Passed => {
            Err("write an address and a port, as in 127.0.0.1:3128".to_owned())
        }
    }
}

/// The same, where nobody says who may use it.
pub(super) fn loopback_address(text: &str) -> Result<SocketAddr, String> {
    let address = socket_address(text)?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(
            "anybody could use it there; write an address of loopback, as in 127.0.0.1:8474"
                .to_owned(),
        )
    }
}

pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let single = || text.parse::<IpAddr>().map(IpNet::from).ok();
    text.parse()
        .ok()
        .or_else(single)
        .ok_or_else(|| "write a range of addresses, as in 172.17.0.0/16".to_owned())
}

pub(super) fn limits(text: &str) -> Result<Limits, String> {
    let (name, number) = text
        .split_once('=')
        .ok_or("write a name and a number, as in connections=5000")?;
    let limit = number.trim().parse().ok().filter(|number| *number > 0);
    let mut limits = Limits::default();
    match name.trim() {
        "connections" => limits.connections = limit,
        "per_client" => limits.per_client = limit,
        "per_target" => limits.per_target = limit,
        "rate" => limits.rate = limit,
        name => {
            let known = ["connections", "per_client", "per_target", "rate"];
            let help = match config::nearest(name, known) {
                Some(near) => format!("did you mean {near:?}?"),
                None => "connections, per_client, per_target and rate are".to_owned(),
            };
            return Err(format!("limit {name:?} is not in this version; {help}"));
        }
    }
    if limit.is_none() {
        return Err(format!("{number:?} is no limit"));
    }
    Ok(limits)
}

pub(super) fn server_name(text: &str) -> Result<String, String> {
    if config::is_server_name(text) {
        Ok(text.to_owned())
    } else {
        Err("it stands in a header: letters, digits and -._ only, a letter first".to_owned())
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    config::duration(text).ok_or_else(|| "write a duration, as in 250ms, 30s or 1m30s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_none_is_told_with_the_one_that_was_meant() {
        for (written, expected) in [
            (
                "conections=5",
                "limit \"conections\" is not in this version; did you mean \"connections\"?",
            ),
            (
                "requests=5",
                "limit \"requests\" is not in this version; connections, per_client, per_target and rate are",
            ),
        ] {
            assert_eq!(limits(written).unwrap_err(), expected);
        }
    }
}
