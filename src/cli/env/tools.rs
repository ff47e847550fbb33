//! What each tool reads, and where.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Tool;
use super::bypass::{Bypass, Reader};
use super::edit::Edit;
use crate::cli::quoted;
use crate::config::env::Environment;

/// What a tool is to be told.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) proxy: Proxy,
    pub(super) bypass: Bypass,
    /// The systemd unit.
    pub(super) unit: Option<String>,
}

/// The proxy that a tool is pointed at.
#[derive(Clone, Debug)]
pub(super) struct Proxy {
    pub(super) scheme: String,
    pub(super) host: String,
    pub(super) port: u16,
    /// Whether its clients must say who they are.
    pub(super) asks_who: bool,
}

impl Proxy {
    /// Reads `scheme://host:port`. Of credentials in front of the host nothing is kept but that there are some.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let (who, place) = match rest.rsplit_once('@') {
            Some((who, place)) => (Some(who), place),
            None => (None, rest),
        };
        let place = place.trim_end_matches('/');
        let uri: http::Uri = format!("{scheme}://{place}").parse().ok()?;
        Some(Self {
            scheme: uri.scheme_str()?.to_owned(),
            host: uri.host()?.to_owned(),
            port: uri.port_u16()?,
            asks_who: who.is_some(),
        })
    }

    /// Whether a tool can be told of it.
    pub(super) fn fits(&self, tool: Tool) -> bool {
        match &*self.scheme {
            "http" | "https" => !self.asks_who || tool == Tool::Ssh,
            "socks5" | "socks5h" => tool == Tool::Ssh,
            _ => false,
        }
    }

    fn url(&self) -> String {
        self.url_of(&self.host)
    }

    /// Its URL where it has another name.
    fn url_of(&self, host: &str) -> String {
        format!("{}://{host}:{}", self.scheme, self.port)
    }

    fn is_loopback(&self) -> bool {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || host
                .parse()
                .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
    }
}

/// Settings, and where they go.
#[derive(Debug)]
pub(super) struct Settings {
    /// What is printed.
    pub(super) text: String,
    /// The file that `--write` changes.
    pub(super) place: Option<Place>,
    /// What cannot be said, and what else is needed.
    pub(super) notes: Vec<String>,
}

/// A settings file.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) edit: Edit,
}

/// The name by which a container reaches its host.
const HOST: &str = "host.docker.internal";

/// The settings of one tool.
pub(super) fn settings(tool: Tool, asked: &Asked, env: &Environment) -> Settings {
    let of = |reader| asked.bypass.told(reader);
    let (list, mut notes) = of(match tool {
        Tool::Go | Tool::Kubernetes | Tool::DockerDaemon => Reader::Go,
        Tool::Maven | Tool::Gradle | Tool::Jvm => Reader::Java,
        Tool::Git | Tool::Apt => Reader::Single,
        Tool::Sh
        | Tool::Fish
        | Tool::Powershell
        | Tool::DockerBuild
        | Tool::DockerClient
        | Tool::Buildx
        | Tool::Compose
        | Tool::Systemd
        | Tool::Ssh
        | Tool::Pip
        | Tool::Npm
        | Tool::Cargo
        | Tool::Gitlab
        | Tool::Github => Reader::Many,
    });
    let no_proxy = list.join(",");
    let url = asked.proxy.url();
    let home = |rest: &str| Some(Path::new(env.get("HOME")?).join(rest));
    let at = |path: Option<PathBuf>, edit: Edit| path.map(|path| Place { path, edit });
    let config = |rest: &str| match env.get("XDG_CONFIG_HOME") {
        Some(folder) => Some(Path::new(folder).join(rest)),
        None => home(&format!(".config/{rest}")),
    };
    let both = |form: &dyn Fn(&str, &str) -> String| {
        let mut text = String::new();
        for (name, value) in pairs(&url, &no_proxy) {
            text.push_str(&form(name, value));
        }
        text
    };
    let exports = both(&|name, value| format!("export {name}={}\n", quoted(value)));
    // As a container sees it.
    let inside = if asked.proxy.is_loopback() {
        asked.proxy.url_of(HOST)
    } else {
        url.clone()
    };
    let is_inside = matches!(
        tool,
        Tool::DockerBuild | Tool::DockerClient | Tool::Buildx | Tool::Compose
    );
    if is_inside && asked.proxy.is_loopback() {
        notes.push(format!(
            "the proxy must listen on Docker's bridge: routecause --listen 127.0.0.1:{0} --listen 172.17.0.1:{0} --allow-from 172.17.0.0/16",
            asked.proxy.port
        ));
    }
    let is_elsewhere = matches!(tool, Tool::Gitlab | Tool::Github | Tool::Kubernetes);
    if is_elsewhere && asked.proxy.is_loopback() {
        notes.push(format!(
            "{url} names the machine it is read on, which is not this one: --proxy http://host:port says where routecause is reached from there"
        ));
    }
    let (text, place) = match tool {
        Tool::Sh => (exports.clone(), at(home(".profile"), Edit::Append)),
        Tool::Fish => (
            both(&|name, value| format!("set -gx {name} {}\n", quoted(value))),
            at(config("fish/conf.d/routecause.fish"), Edit::Whole),
        ),
        Tool::Powershell => (
            both(&|name, value| format!("$env:{name} = '{value}'\n")),
            None,
        ),
        Tool::DockerBuild => {
            let mut text = if asked.proxy.is_loopback() {
                format!("--add-host {HOST}:host-gateway")
            } else {
                String::new()
            };
            for (name, value) in pairs(&inside, &no_proxy) {
                let _ = write!(text, " --build-arg {name}={value}");
            }
            (text.trim_start().to_owned() + "\n", None)
        }
        Tool::DockerClient => {
            if asked.proxy.is_loopback() {
                notes.push(format!(
                    "containers need --add-host {HOST}:host-gateway to know that name"
                ));
            }
            notes.push("containers that run already keep their variables".to_owned());
            let value = json!({"proxies": {"default": {
                "httpProxy": inside, "httpsProxy": inside, "noProxy": no_proxy,
            }}});
            let folder = env
                .get("DOCKER_CONFIG")
                .map(PathBuf::from)
                .or_else(|| home(".docker"));
            let path = folder.map(|folder| folder.join("config.json"));
            (pretty(&value), at(path, Edit::Json(value)))
        }
        Tool::DockerDaemon => {
            notes.push(
                "for docker pull and FROM, from Engine 23 on; restart it: systemctl restart docker"
                    .to_owned(),
            );
            notes.push("Docker Desktop does not read it: use its own settings".to_owned());
            let value = json!({"proxies": {
                "http-proxy": url, "https-proxy": url, "no-proxy": no_proxy,
            }});
            let path = Some("/etc/docker/daemon.json".into());
            (pretty(&value), at(path, Edit::Json(value)))
        }
        Tool::Buildx => {
            notes.push("a comma in a value of --driver-opt needs quotes, as here".to_owned());
            let mut options = String::new();
            for (name, value) in pairs(&inside, &no_proxy) {
                let _ = write!(options, " --driver-opt '\"env.{name}={value}\"'");
            }
            (
                format!("docker buildx create --use --driver docker-container{options}\n"),
                None,
            )
        }
        Tool::Compose => {
            let mut lines = String::new();
            for (name, value) in pairs(&inside, &no_proxy) {
                let _ = writeln!(lines, "  {name}: \"{value}\"");
            }
            let text = format!(
                "x-egress: &egress\n{lines}\nservices:\n  app:                          # yours\n    environment: *egress\n    \
                 build: {{context: ., args: *egress}}\n    extra_hosts: [\"{HOST}:host-gateway\"]\n"
            );
            (text, None)
        }
        Tool::Systemd => {
            let unit = asked.unit.as_deref().unwrap_or("UNIT.service");
            let lines = both(&|name, value| {
                format!("Environment=\"{name}={}\"\n", value.replace('%', "%%"))
            });
            notes.push(format!(
                "then: systemctl daemon-reload && systemctl restart {unit}"
            ));
            let path = asked.unit.as_ref().map(|unit| {
                let unit = if unit.contains('.') {
                    unit.clone()
                } else {
                    format!("{unit}.service")
                };
                PathBuf::from(format!("/etc/systemd/system/{unit}.d/routecause.conf"))
            });
            if path.is_none() {
                notes.push("--unit NAME says which; --write needs it".to_owned());
            }
            (format!("[Service]\n{lines}"), at(path, Edit::Whole))
        }
        Tool::Git => {
            let mut text = format!("[http]\n\tproxy = {url}\n");
            for host in list.iter().filter(|host| !host.contains(':')) {
                for scheme in ["https", "http"] {
                    let _ = write!(text, "[http \"{scheme}://{host}/\"]\n\tproxy =\n");
                }
            }
            notes.push(
                "git exempts a host at its usual port only: for others it reads no_proxy"
                    .to_owned(),
            );
            (text, at(home(".gitconfig"), Edit::Append))
        }
        Tool::Ssh => {
            let direct = list.iter().map(|host| match host.strip_prefix('.') {
                Some(domain) => format!("!*.{domain}"),
                None => format!("!{host}"),
            });
            let direct: Vec<_> = direct.filter(|host| !host.contains('/')).collect();
            let proxy = if asked.proxy.asks_who {
                notes.push(format!(
                    "the proxy asks who you are, which is not for a file: export ROUTECAUSE_PROXY={}://USER:PASSWORD@{}:{}",
                    asked.proxy.scheme, asked.proxy.host, asked.proxy.port
                ));
                String::new()
            } else {
                format!("--proxy {url} ")
            };
            (
                format!(
                    "Host * {}\n    ProxyCommand routecause connect {proxy}%h %p\n",
                    direct.join(" ")
                ),
                at(home(".ssh/config"), Edit::Append),
            )
        }
        Tool::Apt => {
            let mut text = String::new();
            for scheme in ["http", "https"] {
                let _ = writeln!(text, "Acquire::{scheme}::Proxy \"{url}\";");
                for host in list.iter().filter(|host| !host.contains(':')) {
                    let _ = writeln!(text, "Acquire::{scheme}::Proxy::{host} \"DIRECT\";");
                }
            }
            let path = Some("/etc/apt/apt.conf.d/95routecause".into());
            (text, at(path, Edit::Whole))
        }
        Tool::Pip => {
            notes.push("pip has no list of its own: it reads no_proxy".to_owned());
            let lines = vec![("proxy".to_owned(), format!("proxy = {url}"))];
            let edit = Edit::Section {
                name: "global",
                lines,
            };
            (
                format!("[global]\nproxy = {url}\n"),
                at(config("pip/pip.conf"), edit),
            )
        }
        Tool::Npm => {
            let lines = [
                ("proxy", &url),
                ("https-proxy", &url),
                ("noproxy", &no_proxy),
            ];
            let lines = lines.map(|(key, value)| (key.to_owned(), format!("{key}={value}")));
            let text = joined(&lines);
            (text, at(home(".npmrc"), Edit::Flat(lines.to_vec())))
        }
        Tool::Cargo => {
            notes.push("cargo has no list of its own: it reads no_proxy".to_owned());
            let lines = vec![("proxy".to_owned(), format!("proxy = \"{url}\""))];
            let edit = Edit::Section {
                name: "http",
                lines,
            };
            let folder = env
                .get("CARGO_HOME")
                .map(PathBuf::from)
                .or_else(|| home(".cargo"));
            let path = folder.map(|folder| folder.join("config.toml"));
            (format!("[http]\nproxy = \"{url}\"\n"), at(path, edit))
        }
        Tool::Go => {
            notes.push("Go reads these variables only: `go env -w` does not keep them".to_owned());
            (exports.clone(), None)
        }
        Tool::Maven => {
            let hosts = list.join("|");
            let mut text = String::from("  <proxies>\n");
            for scheme in ["http", "https"] {
                let _ = write!(
                    text,
                    "    <proxy>\n      <id>routecause-{scheme}</id>\n      <active>true</active>\n      \
                     <protocol>{scheme}</protocol>\n      <host>{}</host>\n      <port>{}</port>\n      \
                     <nonProxyHosts>{hosts}</nonProxyHosts>\n    </proxy>\n",
                    asked.proxy.host, asked.proxy.port
                );
            }
            text.push_str("  </proxies>\n");
            let edit = Edit::Xml {
                element: "proxies",
                root: "settings",
            };
            (text, at(home(".m2/settings.xml"), edit))
        }
        Tool::Gradle => {
            let lines: Vec<_> = properties(&asked.proxy, &list.join("|"))
                .into_iter()
                .map(|(key, value)| {
                    (
                        format!("systemProp.{key}"),
                        format!("systemProp.{key}={value}"),
                    )
                })
                .collect();
            let text = joined(&lines);
            let folder = env
                .get("GRADLE_USER_HOME")
                .map(PathBuf::from)
                .or_else(|| home(".gradle"));
            let path = folder.map(|folder| folder.join("gradle.properties"));
            (text, at(path, Edit::Flat(lines)))
        }
        Tool::Jvm => {
            let options: Vec<_> = properties(&asked.proxy, &list.join("|"))
                .into_iter()
                .map(|(key, value)| format!("-D{key}={value}"))
                .collect();
            (
                format!("export JAVA_TOOL_OPTIONS={}\n", quoted(&options.join(" "))),
                None,
            )
        }
        Tool::Gitlab => (
            format!(
                "variables:\n{}",
                both(&|name, value| format!("  {name}: \"{value}\"\n"))
            ),
            None,
        ),
        Tool::Github => (
            format!(
                "env:\n{}",
                both(&|name, value| format!("  {name}: \"{value}\"\n"))
            ),
            None,
        ),
        Tool::Kubernetes => {
            notes.push("add the cluster's own names and networks to NO_PROXY: .svc,.cluster.local, pods and services".to_owned());
            (
                format!(
                    "env:\n{}",
                    both(&|name, value| format!("  - {{name: {name}, value: \"{value}\"}}\n"))
                ),
                None,
            )
        }
    };
    Settings { text, place, notes }
}

/// The usual variables, in both cases.
fn pairs<'a>(url: &'a str, no_proxy: &'a str) -> [(&'static str, &'a str); 6] {
    [
        ("http_proxy", url),
        ("https_proxy", url),
        ("no_proxy", no_proxy),
        ("HTTP_PROXY", url),
        ("HTTPS_PROXY", url),
        ("NO_PROXY", no_proxy),
    ]
}

fn properties(proxy: &Proxy, hosts: &str) -> Vec<(&'static str, String)> {
    vec![
        ("http.proxyHost", proxy.host.clone()),
        ("http.proxyPort", proxy.port.to_string()),
        ("https.proxyHost", proxy.host.clone()),
        ("https.proxyPort", proxy.port.to_string()),
        ("http.nonProxyHosts", hosts.to_owned()),
    ]
}

/// The lines of settings that are told by key.
fn joined(lines: &[(String, String)]) -> String {
    let lines: Vec<_> = lines.iter().map(|(_, line)| line.as_str()).collect();
    lines.join("\n") + "\n"
}

fn pretty(value: &serde_json::Value) -> String {
    let text = serde_json::to_string_pretty(value);
    text.map_or_else(|_| String::new(), |text| text + "\n")
}
