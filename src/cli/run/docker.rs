//! `docker build` behind the proxy: its build arguments, and an address that the builder can reach.

use std::ffi::OsString;
use std::net::IpAddr;

use anyhow::Context as _;
use ipnet::IpNet;
use serde_json::Value;

use super::super::settings::LOCAL;

/// Options of `docker` and `docker compose` in front of the subcommand that take a value of their own.
const VALUED: [&str; 18] = [
    "-H",
    "--host",
    "-c",
    "--context",
    "--config",
    "-l",
    "--log-level",
    "--tlscacert",
    "--tlscert",
    "--tlskey",
    "-f",
    "--file",
    "-p",
    "--project-name",
    "--project-directory",
    "--profile",
    "--env-file",
    "--builder",
];

/// The variables that a build knows without an `ARG` line.
const PREDEFINED: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"];

/// A build that is about to run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Build {
    /// Where build arguments are put: behind the word `build`.
    at: usize,
    /// Its steps run in the network of the host.
    pub(super) is_on_host: bool,
}

impl Build {
    /// Of a command line, where it is one: `docker build`, `docker buildx build`, `docker image build`,
    /// `docker builder build`, `docker compose build`.
    pub(super) fn of(program: &str, command: &[OsString]) -> Option<Self> {
        if program != "docker" {
            return None;
        }
        let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
        let mut at = 1;
        loop {
            let word = words.get(at)?;
            match &**word {
                "build" => break,
                "buildx" | "image" | "builder" | "compose" => at += 1,
                option if VALUED.contains(&option) => at += 2,
                option if option.starts_with('-') => at += 1,
                _ => return None,
            }
        }
        let rest: Vec<&str> = words.iter().skip(at + 1).map(|word| &**word).collect();
        let is_on_host = rest.contains(&"--network=host")
            || rest.windows(2).any(|pair| pair == ["--network", "host"]);
        Some(Self {
            at: at + 1,
            is_on_host,
        })
    }

    /// Adds the build arguments that send its steps to the proxy; those that the user gives stay.
    pub(super) fn point_at(&self, proxy: &str, command: &mut Vec<OsString>) {
        let given = |name: &str| {
            command.iter().any(|word| {
                let word = word.to_string_lossy();
                let word = word.strip_prefix("--build-arg=").unwrap_or(&word);
                word.split('=').next() == Some(name)
            })
        };
        let proxies = PREDEFINED.map(|name| (name, proxy));
        let args = proxies
            .into_iter()
            .chain([("NO_PROXY", LOCAL), ("no_proxy", LOCAL)])
            .filter(|(name, _)| !given(name))
            .flat_map(|(name, value)| ["--build-arg".to_owned(), format!("{name}={value}")]);
        let args: Vec<OsString> = args.map(OsString::from).collect();
        command.splice(self.at..self.at, args);
    }
}

/// The network that build steps run in.
#[derive(Debug)]
pub(in crate::cli) struct Bridge {
    /// This machine's address on it.
    pub(in crate::cli) gateway: IpAddr,
    /// The addresses of its containers.
    pub(in crate::cli) subnet: IpNet,
}

impl Bridge {
    /// Asks the engine for its default bridge.
    pub(super) async fn find() -> anyhow::Result<Self> {
        let output = tokio::process::Command::new("docker")
            .args(["network", "inspect", "bridge"])
            .output()
            .await
            .context("run docker network inspect bridge")?;
        anyhow::ensure!(
            output.status.success(),
            "docker network inspect bridge: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Self::read(&output.stdout).context("read what docker network inspect bridge says")
    }

    /// Reads what `docker network inspect bridge` prints.
    pub(in crate::cli) fn read(text: &[u8]) -> anyhow::Result<Self> {
        let networks: Value = serde_json::from_slice(text)?;
        let configs = networks.pointer("/0/IPAM/Config").and_then(Value::as_array);
        let found = configs.into_iter().flatten().find_map(|config| {
            let subnet: IpNet = config.get("Subnet")?.as_str()?.parse().ok()?;
            // Where no container ever ran the gateway may be left out: it is the first address.
            let gateway = match config.get("Gateway").and_then(Value::as_str) {
                Some(gateway) => gateway.parse().ok(),
                None => subnet.hosts().next(),
            };
            Some(Self {
                gateway: gateway?,
                subnet,
            })
        });
        found.context("the bridge has no network")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[track_caller]
    fn check(line: &str, expected: Option<(usize, bool)>) {
        let found = Build::of("docker", &words(line));
        let found = found.map(|build| (build.at, build.is_on_host));
        assert_eq!(found, expected, "{line}");
    }

    #[test]
    fn builds_are_told_from_other_commands() {
        check("docker build .", Some((2, false)));
        check("docker buildx build --network=host .", Some((3, true)));
        check("docker image build --network host .", Some((3, true)));
        check("docker --context x build .", Some((4, false)));
        check("docker compose -f a.yaml build web", Some((5, false)));
        check("docker run image build", None);
        check("docker", None);
        assert_eq!(Build::of("podman", &words("podman build .")), None);
    }

    #[test]
    fn arguments_stand_behind_build_and_those_of_the_user_stay() {
        let mut command = words("docker build --build-arg https_proxy=x -t a .");
        let build = Build::of("docker", &command).unwrap();
        build.point_at("http://172.17.0.1:1", &mut command);
        let line: Vec<_> = command.iter().map(|w| w.to_str().unwrap()).collect();
        let line = line.join(" ");
        assert!(
            line.starts_with("docker build --build-arg HTTP_PROXY=http://172.17.0.1:1 "),
            "{line}"
        );
        assert!(line.ends_with("--build-arg https_proxy=x -t a ."), "{line}");
        assert!(!line.contains("https_proxy=http"), "{line}");
    }

    #[test]
    fn the_bridge_is_read_with_and_without_its_gateway() {
        let text = |more: &str| {
            format!(r#"[{{"IPAM": {{"Config": [{{"Subnet": "172.17.0.0/16"{more}}}]}}}}]"#)
        };
        for more in ["", r#", "Gateway": "172.17.0.1""#] {
            let bridge = Bridge::read(text(more).as_bytes()).unwrap();
            assert_eq!(bridge.gateway.to_string(), "172.17.0.1");
        }
        assert!(Bridge::read(b"[]").is_err());
    }
}
