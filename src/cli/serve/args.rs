//! What `serve` is told.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PathBufValueParser, TypedValueParser as _};
use clap::{Args, ValueEnum};
use ipnet::IpNet;

use crate::cli::{PolicyArg, parse};
use crate::config::{AdminAddress, Limits, ListenAt, otlp};

#[derive(Debug, Args)]
pub(in crate::cli) struct ServeArgs {
    #[command(flatten)]
    pub(in crate::cli) policy: PolicyArg,
    /// Listen here; may be repeated. An address that other machines can reach needs --allow-from, or users.
    /// `unix:/run/routecause.sock` is a socket in the file system, `systemd` the next one that systemd passes.
    /// [default: 127.0.0.1:3128]
    #[arg(long, value_name = "ADDRESS", env = "ROUTECAUSE_LISTEN", value_delimiter = ',', value_parser = parse::listen_address)]
    pub(in crate::cli) listen: Vec<ListenAt>,
    /// Who may use the proxy beside clients on this machine, as in 172.17.0.0/16; may be repeated.
    #[arg(long, value_name = "CIDR", env = "ROUTECAUSE_ALLOW_FROM", value_delimiter = ',', value_parser = parse::network)]
    pub(in crate::cli) allow_from: Vec<IpNet>,
    /// Where metrics, the admin API and the dashboard are: an address, `unix:PATH`, or `off`. [default: 127.0.0.1:3129,
    /// unless that is taken]
    #[arg(long, value_name = "ADDRESS|off", env = "ROUTECAUSE_ADMIN")]
    pub(in crate::cli) admin: Option<AdminAddress>,
    /// The file with the token that is asked for there; needed where other machines can reach it. The token itself may stand
    /// in `ROUTECAUSE_ADMIN_TOKEN`.
    #[arg(long, value_name = "FILE", env = "ROUTECAUSE_ADMIN_TOKEN_FILE")]
    pub(in crate::cli) admin_token_file: Option<PathBuf>,
    /// Keep records in this SQLite file as well (a build with the feature `history`).
    #[arg(long, value_name = "FILE", env = "ROUTECAUSE_HISTORY", value_parser = PathBufValueParser::new().try_map(history))]
    pub(in crate::cli) history: Option<PathBuf>,
    /// How long that keeps them, as in 24h. [default: 168h]
    #[arg(long, value_name = "DURATION", env = "ROUTECAUSE_HISTORY_RETENTION", value_parser = parse::duration)]
    pub(in crate::cli) history_retention: Option<Duration>,
    /// How many of the hosts that failed most of late are named in the metrics. [default: 0]
    #[arg(long, value_name = "NUMBER", env = "ROUTECAUSE_METRICS_HOSTS")]
    pub(in crate::cli) metrics_hosts: Option<usize>,
    /// Export records and spans to the OTLP collector at this URL, as in <http://127.0.0.1:4318>, or `off` (a build with the
    /// feature `otlp`). Without it, `OTEL_EXPORTER_OTLP_ENDPOINT` and its like are read.
    #[arg(long, value_name = "URL|off", env = "ROUTECAUSE_OTLP", value_parser = otlp::Endpoint::of_flag)]
    pub(in crate::cli) otlp: Option<otlp::Endpoint>,
    /// How records are written. [default: text on a terminal, else json]
    #[arg(long, value_name = "FORMAT", env = "ROUTECAUSE_LOG_FORMAT")]
    pub(in crate::cli) log_format: Option<LogFormat>,
    /// Where records are written, appending; standard output without it.
    #[arg(long, value_name = "FILE", env = "ROUTECAUSE_LOG_FILE")]
    pub(in crate::cli) log_file: Option<PathBuf>,
    /// The name in Proxy-Status. [default: routecause]
    #[arg(long, value_name = "NAME", env = "ROUTECAUSE_NAME", value_parser = parse::server_name)]
    pub(in crate::cli) name: Option<String>,
    /// Limits of the whole process, as in connections=5000: `connections` (10000, fewer where the limit of open files is low),
    /// `per_client` (512, and any number from this machine), `per_target`, and `rate` (requests of one client in a second).
    /// May be repeated.
    #[arg(long, value_name = "NAME=NUMBER", env = "ROUTECAUSE_LIMITS", value_delimiter = ',', value_parser = parse::limits)]
    pub(in crate::cli) limits: Vec<Limits>,
    /// How long open tunnels have when the process is told to end, as in 30s. [default: 30s]
    #[arg(long, value_name = "DURATION", env = "ROUTECAUSE_DRAIN_TIMEOUT", value_parser = parse::duration)]
    pub(in crate::cli) drain_timeout: Option<Duration>,
}

fn history(path: PathBuf) -> Result<PathBuf, &'static str> {
    if cfg!(feature = "history") {
        Ok(path)
    } else {
        Err("this build keeps no history: build it with --features history")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum LogFormat {
    /// One JSON object a line.
    Json,
    /// One line for people.
    Text,
}
