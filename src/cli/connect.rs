//! `routecause connect HOST PORT`: a tunnel through a proxy on standard input and output, as ssh's `ProxyCommand` wants it.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::exit;
use crate::config::env::{Environment, proxy_without_credentials};
use crate::config::{self, Listener, Options};
use crate::target::Target;

#[derive(Debug, Args)]
pub(in crate::cli) struct ConnectArgs {
    /// The proxy. [default: where the policy listens]
    #[arg(long, value_name = "URL")]
    pub(in crate::cli) proxy: Option<String>,
    /// The host.
    pub(in crate::cli) host: String,
    /// The port.
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(in crate::cli) port: u16,
}

/// The proxy may try several hops before it answers.
const PATIENCE: Duration = Duration::from_mins(2);

/// The longest head of an answer.
const LARGEST_HEAD: usize = 64 * 1024;

pub(super) fn run(args: &ConnectArgs, env: &Environment) -> u8 {
    let spelled = if args.host.contains(':') && !args.host.starts_with('[') {
        format!("[{}]:{}", args.host, args.port)
    } else {
        format!("{}:{}", args.host, args.port)
    };
    let target = match Target::from_authority(&spelled) {
        Ok(target) => target,
        Err(error) => {
            say!("error: {error}");
            return exit::USAGE;
        }
    };
    let Some(proxy) = args.proxy.clone().or_else(|| usual(env)) else {
        say!("error: no listener of the policy has an address to name: --proxy http://host:port");
        return exit::USAGE;
    };
    match open(&proxy, &target) {
        Ok(Answer::Granted(stream, early)) => match carry(stream, &early) {
            Ok(()) => 0,
            Err(error) => {
                say!("error: {error:#}");
                exit::EGRESS_FAILED
            }
        },
        Ok(Answer::Refused { status, reason }) => {
            say!("error: {target}: {reason}");
            if status == 403 {
                exit::DENIED
            } else {
                exit::EGRESS_FAILED
            }
        }
        Err(error) => {
            say!("error: {error:#}");
            exit::UNAVAILABLE
        }
    }
}

/// Where the policy listens.
fn usual(env: &Environment) -> Option<String> {
    let source = config::locate(None, env);
    let loaded = config::load(&source, env, &Options::check(jiff::Timestamp::now()));
    let listeners = loaded.ok().and_then(|loaded| loaded.server.listen);
    Listener::url(&listeners.unwrap_or_else(|| vec![Listener::default()]))
}

enum Answer {
    /// The tunnel, and what came behind the answer.
    Granted(TcpStream, Vec<u8>),
    Refused {
        status: u16,
        reason: String,
    },
}

/// Asks the proxy for a tunnel.
fn open(proxy: &str, target: &Target) -> anyhow::Result<Answer> {
    let authority = proxy
        .strip_prefix("http://")
        .unwrap_or(proxy)
        .trim_end_matches('/');
    let shown = proxy_without_credentials(proxy);
    let addresses = authority
        .to_socket_addrs()
        .with_context(|| format!("the proxy {shown}: write http://host:port"))?;
    let mut stream = connect(addresses).with_context(|| {
        format!("connect to the proxy at {shown} (is `routecause serve` running?)")
    })?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
    )?;
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream
            .read(&mut buffer)
            .context("wait for the proxy's answer")?;
        anyhow::ensure!(
            read > 0,
            "the proxy closed the connection without an answer"
        );
        head.extend_from_slice(buffer.get(..read).unwrap_or_default());
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut fields);
        match response
            .parse(&head)
            .context("the proxy does not speak HTTP")?
        {
            httparse::Status::Complete(length) => {
                let status = response.code.unwrap_or_default();
                if (200..300).contains(&status) {
                    let early = head.get(length..).unwrap_or_default().to_vec();
                    stream.set_read_timeout(None)?;
                    return Ok(Answer::Granted(stream, early));
                }
                let reason = response.reason.unwrap_or_default();
                let reason = crate::record::quote(&format!("{status} {reason}"));
                return Ok(Answer::Refused { status, reason });
            }
            httparse::Status::Partial => {
                anyhow::ensure!(head.len() < LARGEST_HEAD, "the proxy's answer does not end");
            }
        }
    }
}

/// Tries each address; the last error counts.
fn connect(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut failure = io::Error::other("it has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, Duration::from_secs(10)) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Carries bytes between the tunnel and standard input and output, until the far side ends.
fn carry(stream: TcpStream, early: &[u8]) -> anyhow::Result<()> {
    let mut up = stream.try_clone()?;
    // It ends with the process, where the far side ends first.
    std::thread::Builder::new()
        .name("up".to_owned())
        .spawn(move || {
            let _ = io::copy(&mut io::stdin(), &mut up);
            let _ = up.shutdown(Shutdown::Write);
        })?;
    let mut out = io::stdout();
    let mut stream = stream;
    let mut buffer = vec![0; 64 * 1024];
    let written = out.write_all(early).and_then(|()| out.flush());
    let mut carried = written;
    while carried.is_ok() {
        let read = stream.read(&mut buffer).context("read from the tunnel")?;
        if read == 0 {
            break;
        }
        let bytes = buffer.get(..read).unwrap_or_default();
        carried = out.write_all(bytes).and_then(|()| out.flush());
    }
    match carried {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        carried => carried.context("write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_proxy_with_several_addresses_is_tried_at_each() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let nowhere = SocketAddr::new([127, 0, 0, 2].into(), address.port());
        assert!(connect([nowhere, address].into_iter()).is_ok());
        assert_eq!(
            connect([nowhere].into_iter()).unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
    }
}
