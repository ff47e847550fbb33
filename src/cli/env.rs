//! `routecause env`: the settings that each tool reads, printed, or written and taken back.

mod bypass;
mod edit;
mod file;
mod tools;

use std::io::{self, IsTerminal as _};

use clap::builder::{StringValueParser, TypedValueParser as _};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;

use super::{ListenArg, PolicyArg, exit, print, serve, settings};
use crate::config::env::{Environment, proxy_without_credentials};
use crate::config::{self, Listener, Loaded, Options};
use crate::policy::matcher::Matcher;
use crate::secret::Secret;

use bypass::Bypass;
use tools::{Place, Settings};

#[derive(Debug, Args)]
pub(in crate::cli) struct EnvArgs {
    #[command(flatten)]
    pub(in crate::cli) policy: PolicyArg,
    #[command(flatten)]
    pub(in crate::cli) listen: ListenArg,
    /// For which tool.
    #[arg(long = "for", value_name = "TOOL", default_value = "sh")]
    pub(in crate::cli) tool: Tool,
    /// The proxy. [default: where `ROUTECAUSE_LISTEN`, or the policy, has it listen]
    #[arg(long, value_name = "URL", value_parser = StringValueParser::new().map(Secret::new))]
    pub(in crate::cli) proxy: Option<Secret>,
    /// What the tool reaches without it, beside this machine, as in `NO_PROXY`. [default: the policy's `no_proxy`]
    #[arg(long, value_name = "LIST")]
    pub(in crate::cli) no_proxy: Option<String>,
    /// The unit, for systemd.
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) unit: Option<String>,
    /// Put the settings into the tool's file.
    #[arg(long)]
    pub(in crate::cli) write: bool,
    /// Make that file what it was, byte for byte.
    #[arg(long, conflicts_with_all = ["write", "json"])]
    pub(in crate::cli) undo: bool,
    /// Print JSON.
    #[arg(long, conflicts_with = "write")]
    pub(in crate::cli) json: bool,
}

/// Tools that are told of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Tool {
    /// Shells of the Bourne kind: bash, zsh, dash.
    Sh,
    /// fish.
    Fish,
    /// `PowerShell`.
    Powershell,
    /// Arguments of docker build.
    DockerBuild,
    /// Docker's command: containers and builds that it starts.
    DockerClient,
    /// Docker's engine: what it pulls.
    DockerDaemon,
    /// A builder of buildx.
    Buildx,
    /// A compose file.
    Compose,
    /// A unit of systemd.
    Systemd,
    /// git.
    Git,
    /// ssh, through `routecause connect`.
    Ssh,
    /// apt.
    Apt,
    /// pip.
    Pip,
    /// npm.
    Npm,
    /// cargo.
    Cargo,
    /// Go.
    Go,
    /// Maven.
    Maven,
    /// Gradle.
    Gradle,
    /// Any Java machine.
    Jvm,
    /// A job of GitLab.
    Gitlab,
    /// A job of GitHub.
    Github,
    /// A container of Kubernetes.
    Kubernetes,
}

impl Tool {
    /// The word on the command line.
    pub(in crate::cli) fn name(self) -> &'static str {
        match self {
            Self::Sh => "sh",
            Self::Fish => "fish",
            Self::Powershell => "powershell",
            Self::DockerBuild => "docker-build",
            Self::DockerClient => "docker-client",
            Self::DockerDaemon => "docker-daemon",
            Self::Buildx => "buildx",
            Self::Compose => "compose",
            Self::Systemd => "systemd",
            Self::Git => "git",
            Self::Ssh => "ssh",
            Self::Apt => "apt",
            Self::Pip => "pip",
            Self::Npm => "npm",
            Self::Cargo => "cargo",
            Self::Go => "go",
            Self::Maven => "maven",
            Self::Gradle => "gradle",
            Self::Jvm => "jvm",
            Self::Gitlab => "gitlab",
            Self::Github => "github",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// Whether it reaches proxies by TLS. Java has no such setting.
    fn speaks_tls(self) -> bool {
        !matches!(self, Self::Maven | Self::Gradle | Self::Jvm)
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Told<'a> {
    schema: &'static str,
    r#for: &'static str,
    settings: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    notes: &'a [String],
}

pub(super) fn run(args: &EnvArgs, env: &Environment) -> u8 {
    let name = args.tool.name();
    if args.undo {
        return match file::undo(name, env) {
            Ok(path) => {
                say!("{} is as it was", path.display());
                0
            }
            Err(error) => {
                say!("error: {error:#}");
                exit::FAILED
            }
        };
    }
    let asked = match asked(args, env) {
        Ok(asked) => asked,
        Err(code) => return code,
    };
    let Settings { text, place, notes } = tools::settings(args.tool, &asked, env);
    if args.write {
        let Some(place) = place else {
            say!(
                "error: there is no file for {name}: put what `routecause env --for {name}` prints where it is needed"
            );
            return exit::USAGE;
        };
        return write(name, &text, &place, &notes, env);
    }
    if args.json {
        let told = Told {
            schema: "routecause.env/1",
            r#for: name,
            settings: &text,
            file: place.map(|place| place.path.display().to_string()),
            notes: &notes,
        };
        match serde_json::to_string_pretty(&told) {
            Ok(text) => print(&(text + "\n")),
            Err(error) => say!("error: {error}"),
        }
        return 0;
    }
    for note in &notes {
        say!("note: {note}");
    }
    if let (Some(place), true) = (&place, io::stdout().is_terminal()) {
        say!("for {}; --write puts it there", place.path.display());
    }
    print(&text);
    0
}

fn write(name: &'static str, text: &str, place: &Place, notes: &[String], env: &Environment) -> u8 {
    match file::write(name, place, text, env) {
        Ok(()) => {
            for note in notes {
                say!("note: {note}");
            }
            say!(
                "{} written; `routecause env --for {name} --undo` takes it back",
                place.path.display()
            );
            0
        }
        Err(error) => {
            say!("error: {error:#}");
            let kinds = error
                .chain()
                .filter_map(|error| error.downcast_ref::<io::Error>());
            let mut kinds = kinds.map(io::Error::kind);
            if kinds.any(|kind| kind == io::ErrorKind::PermissionDenied) {
                exit::NO_PERMISSION
            } else {
                exit::FAILED
            }
        }
    }
}

/// What the tool is to be told: the proxy, and what it reaches without it.
fn asked(args: &EnvArgs, env: &Environment) -> Result<tools::Asked, u8> {
    let source = config::locate(args.policy.policy.as_deref(), env);
    let mut options = Options::check(Timestamp::now());
    options.listen.clone_from(&args.listen.listen);
    let loaded = config::load(&source, env, &options);
    let Loaded { policy, server, .. } = loaded.map_err(|report| {
        say!("{}", report.render(false));
        exit::BAD_POLICY
    })?;
    let listeners = serve::listeners(&args.listen.listen, &server);
    let usual = || Listener::url(&listeners).map(Secret::new);
    let Some(url) = args.proxy.clone().or_else(usual) else {
        say!("error: no listener of {source} has an address to name: --proxy http://host:port");
        return Err(exit::USAGE);
    };
    let proxy = tools::Proxy::parse(url.reveal()).filter(|proxy| proxy.fits(args.tool));
    let Some(mut proxy) = proxy else {
        let more = if args.tool == Tool::Ssh {
            ", socks5:// or socks5h://"
        } else {
            ""
        };
        say!(
            "error: --proxy {}: write http://host:port, or https://{more}",
            proxy_without_credentials(url.reveal())
        );
        return Err(exit::USAGE);
    };
    if args.proxy.is_none() && server.users.is_some() {
        proxy.asks_who = listeners.iter().any(|it| it.auth != Some(false));
    }
    if proxy.scheme == "https" && !args.tool.speaks_tls() {
        say!(
            "error: {} speaks no TLS with a proxy: --proxy http://host:port names a listener without it",
            args.tool.name()
        );
        return Err(exit::USAGE);
    }
    let mut bypass = Bypass::read(settings::LOCAL);
    if let Some(list) = &args.no_proxy {
        bypass.add(list);
    } else {
        let lists = policy.rules.iter().filter_map(|rule| {
            let Matcher::NoProxy(list) = &rule.matcher else {
                return None;
            };
            Some(list)
        });
        for entry in lists.flat_map(|list| list.entries()) {
            bypass.add(entry);
        }
    }
    Ok(tools::Asked {
        proxy,
        bypass,
        unit: args.unit.clone(),
    })
}
