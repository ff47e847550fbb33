//! `docker build` and `docker run` behind the proxy: the variables of their containers, and an address that these can reach.

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

/// The variables of a container; a build knows them without an `ARG` line.
const VARIABLES: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"];

/// A command that is about to work in a container, which has variables of its own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contained {
    /// Where options are put: behind the word `build` or `run`.
    at: usize,
    /// The option that sets a variable.
    option: &'static str,
    /// It works in the network of the host.
    pub(super) is_on_host: bool,
}

impl Contained {
    /// Of a command line, where it is one: `docker build`, `docker buildx build`, `docker image build`,
    /// `docker builder build`, `docker compose build`, `docker run`, `docker container run`. `docker compose run` has a network of
    /// its own, which the proxy does not know.
    pub(super) fn of(program: &str, command: &[OsString]) -> Option<Self> {
        if program != "docker" {
            return None;
        }
        let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
        let mut at = 1;
        let option = loop {
            let word = words.get(at)?;
            match &**word {
                "build" => break "--build-arg",
                "run" if !words.iter().take(at).any(|word| word == "compose") => break "--env",
                "buildx" | "image" | "builder" | "compose" | "container" => at += 1,
                option if VALUED.contains(&option) => at += 2,
                option if option.starts_with('-') => at += 1,
                _ => return None,
            }
        };
        let rest: Vec<&str> = words.iter().skip(at + 1).map(|word| &**word).collect();
        let is_on_host = ["--network", "--net"].into_iter().any(|network| {
            rest.contains(&&*format!("{network}=host"))
                || rest.windows(2).any(|pair| pair == [network, "host"])
        });
        Some(Self {
            at: at + 1,
            option,
            is_on_host,
        })
    }

    /// Adds the variables that send what is done in the container to the proxy; those that the user gives stay.
    pub(super) fn point_at(&self, proxy: &str, command: &mut Vec<OsString>) {
        let given = |name: &str| {
            command.iter().any(|word| {
                let word = word.to_string_lossy();
                let option = word.strip_prefix(self.option);
                let word = option
                    .and_then(|word| word.strip_prefix('='))
                    .unwrap_or(&word);
                word.split('=').next() == Some(name)
            })
        };
        let proxies = VARIABLES.map(|name| (name, proxy));
        let args = proxies
            .into_iter()
            .chain([("NO_PROXY", LOCAL), ("no_proxy", LOCAL)])
            .filter(|(name, _)| !given(name))
            .flat_map(|(name, value)| [self.option.to_owned(), format!("{name}={value}")]);
        let args: Vec<OsString> = args.map(OsString::from).collect();
        command.splice(self.at..self.at, args);
    }
}

/// The network that containers are in unless they are told another.
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
        let found = Contained::of("docker", &words(line));
        let found = found.map(|contained| (contained.at, contained.is_on_host));
        assert_eq!(found, expected, "{line}");
    }

    #[test]
    fn what_works_in_a_container_is_told_from_other_commands() {
        check("docker build .", Some((2, false)));
        check("docker buildx build --network=host .", Some((3, true)));
        check("docker image build --network host .", Some((3, true)));
        check("docker --context x build .", Some((4, false)));
        check("docker compose -f a.yaml build web", Some((5, false)));
        check("docker run image build", Some((2, false)));
        check("docker container run --net host image", Some((3, true)));
        check("docker compose run web", None);
        check("docker ps", None);
        check("docker", None);
        assert_eq!(Contained::of("podman", &words("podman build .")), None);
    }

    #[test]
    fn variables_stand_behind_the_verb_and_those_of_the_user_stay() {
        for (given, begins, ends) in [
            (
                "docker build --build-arg https_proxy=x -t a .",
                "docker build --build-arg HTTP_PROXY=http://172.17.0.1:1 ",
                "--build-arg https_proxy=x -t a .",
            ),
            (
                "docker run --rm --env=https_proxy=x a",
                "docker run --env HTTP_PROXY=http://172.17.0.1:1 ",
                "--rm --env=https_proxy=x a",
            ),
        ] {
            let mut command = words(given);
            let contained = Contained::of("docker", &command).unwrap();
            contained.point_at("http://172.17.0.1:1", &mut command);
            let line: Vec<_> = command.iter().map(|w| w.to_str().unwrap()).collect();
            let line = line.join(" ");
            assert!(line.starts_with(begins) && line.ends_with(ends), "{line}");
            assert!(!line.contains("https_proxy=http"), "{line}");
        }
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
