//! Asking the admin listener of a running proxy.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HOST};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Collected, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::{ADMIN_TOKEN, AdminArgs, exit};
use crate::config::env::Environment;
use crate::config::{AdminAddress, TokenSource};
use crate::secret::Secret;
use crate::timeouts::Brief;

/// A proxy answers at once: what is silent for so long is none, or hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// A proxy that is asked.
pub(super) struct Asked {
    address: AdminAddress,
    token: Option<Secret>,
}

/// Why there is no answer. Said already, in words.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// Nobody answers there.
    #[error(
        "no routecause answers at {address}: {why}; is it running, and is its admin listener there (--admin)?"
    )]
    Unreachable { address: String, why: String },
    /// What it answers is no success.
    #[error("routecause at {address} answers {status}: {detail}")]
    Refused {
        address: String,
        status: StatusCode,
        detail: String,
    },
    /// The token cannot be had.
    #[error("the admin token: {0}")]
    Token(String),
}

/// A runtime for one thread, and the proxy that the flags name.
pub(super) fn prepare(args: &AdminArgs, env: &Environment) -> Result<(Runtime, Asked), AskError> {
    let address = args.admin.clone();
    let of_flag = args.admin_token_file.clone().map(TokenSource::File);
    let of_env = || {
        env.get(ADMIN_TOKEN)?;
        Some(TokenSource::Env(ADMIN_TOKEN.to_owned()))
    };
    let token = of_flag.or_else(of_env).map(|source| source.read(env));
    let token = token.transpose();
    let token = token.map_err(|error| AskError::Token(error.to_string()))?;
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| AskError::Unreachable {
        address: address.to_string(),
        why: error.to_string(),
    })?;
    Ok((runtime, Asked { address, token }))
}

/// Says what is wrong, and how the program ends.
pub(super) fn complain(error: &AskError) -> u8 {
    say!("error: {error}");
    exit::UNREACHABLE
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Asked {
    /// Where it is.
    pub(super) fn address(&self) -> &AdminAddress {
        &self.address
    }

    /// What a path answers, once it is a success. Its body may take as long as it likes.
    pub(super) async fn get(&self, path: &str) -> Result<Response<Incoming>, AskError> {
        self.in_time(self.ask(Method::GET, path)).await
    }

    /// Asks for what a path stands for to be gone.
    pub(super) async fn delete(&self, path: &str) -> Result<(), AskError> {
        self.in_time(self.ask(Method::DELETE, path)).await.map(drop)
    }

    /// What a path answers, as JSON.
    pub(super) async fn json(&self, path: &str) -> Result<Value, AskError> {
        self.in_time(async {
            let answer = self.ask(Method::GET, path).await?;
            let body = answer.into_body().collect().await;
            let body = body.map_err(|error| self.unreachable(&error))?.to_bytes();
            serde_json::from_slice(&body).map_err(|error| self.unreachable(&error))
        })
        .await
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, AskError>>,
    ) -> Result<T, AskError> {
        let silent = |_| Err(self.unreachable(&format!("no answer in {}", Brief(PATIENCE))));
        timeout(PATIENCE, answer).await.unwrap_or_else(silent)
    }

    fn unreachable(&self, why: &impl ToString) -> AskError {
        AskError::Unreachable {
            address: self.address.to_string(),
            why: why.to_string(),
        }
    }

    async fn ask(&self, method: Method, path: &str) -> Result<Response<Incoming>, AskError> {
        let answer = self.send(method, path).await;
        let answer = answer.map_err(|why| self.unreachable(&why))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = answer.into_body().collect().await;
        let body = body.map(Collected::to_bytes).unwrap_or_default();
        let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
        let detail = problem.get("detail").and_then(Value::as_str);
        Err(AskError::Refused {
            address: self.address.to_string(),
            status,
            detail: detail
                .unwrap_or("is that an admin listener, and not the proxy itself?")
                .to_owned(),
        })
    }

    async fn send(&self, method: Method, path: &str) -> Result<Response<Incoming>, String> {
        let stream = self.connect().await.map_err(|error| error.to_string())?;
        let told = |error: hyper::Error| error.to_string();
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(told)?;
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends with the program, or before"
        )]
        tokio::spawn(async move {
            // What goes wrong shows in the answer.
            let _ = connection.await;
        });
        let host = match &self.address {
            AdminAddress::Tcp(address) => address.to_string(),
            AdminAddress::Unix(_) | AdminAddress::Off => "localhost".to_owned(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, host)
            .header(ACCEPT, "*/*");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.reveal()));
        }
        let request = request.body(Empty::<Bytes>::new());
        let request = request.map_err(|error| error.to_string())?;
        sender.send_request(request).await.map_err(told)
    }

    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        Ok(match &self.address {
            AdminAddress::Off => return Err(io::Error::other("it is off")),
            AdminAddress::Unix(path) => Box::new(UnixStream::connect(path).await?),
            AdminAddress::Tcp(address) => {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "this is a proxy's own admin listener, and no target"
                )]
                let stream = TcpStream::connect(address).await?;
                Box::new(stream)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_listens_and_says_nothing_is_no_proxy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Asked {
            address: AdminAddress::Tcp(listener.local_addr().unwrap()),
            token: None,
        };
        let errors = [
            proxy.get("/readyz").await.unwrap_err(),
            proxy.json("/v1/status").await.unwrap_err(),
            proxy.delete("/v1/dns/cache").await.unwrap_err(),
        ];
        for error in errors {
            assert!(error.to_string().contains("no answer in 5s"), "{error}");
        }
    }
}
