//! Whole HTTP servers on loopback, plain or over TLS, for real clients: a folder, a function, a CGI program.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// A request with its whole body.
pub type Request = http::Request<Bytes>;

/// An answer with its whole body.
pub type Response = http::Response<Full<Bytes>>;

/// An authority that only a test trusts.
#[derive(Debug)]
pub struct Ca {
    pub(super) issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Ca {
    /// A new one, its certificate in a file.
    pub fn new() -> Self {
        Self::named("routecause test authority")
    }

    /// The same, under a name.
    pub fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    /// Its certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Its certificate, as text.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// What a server needs to be `names`.
    pub(super) fn server(&self, names: &[&str]) -> rustls::ServerConfig {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        // Python asks for it since 3.13.
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let chain = vec![certificate.der().clone(), self.issuer.der().clone()];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap()
    }
}

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Web {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    runtime: Option<Runtime>,
}

/// A request that reached a server.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Method and path, as in `GET /`.
    pub line: String,
    /// Its fields.
    pub headers: http::HeaderMap,
    /// The address that it came from.
    pub peer: SocketAddr,
}

impl Web {
    /// Answers plain requests.
    pub fn plain(handler: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        Self::start(loopback(), None, Arc::new(handler))
    }

    /// The same at an address of the test's own.
    pub fn plain_on(
        address: SocketAddr,
        handler: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        Self::start(address, None, Arc::new(handler))
    }

    /// Answers over TLS under `names`.
    pub fn tls(
        ca: &Ca,
        names: &[&str],
        handler: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        Self::tls_on(loopback(), ca, names, handler)
    }

    /// The same at an address of the test's own.
    pub fn tls_on(
        address: SocketAddr,
        ca: &Ca,
        names: &[&str],
        handler: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        Self::start(address, Some(Arc::new(ca.server(names))), Arc::new(handler))
    }

    fn start(
        address: SocketAddr,
        tls: Option<Arc<rustls::ServerConfig>>,
        handler: Arc<dyn Fn(&Request) -> Response + Send + Sync>,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind(address)).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = seen.clone();
        runtime.spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let (tls, handler, seen) = (tls.clone(), handler.clone(), noted.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, peer, handler, seen).await,
                        Some(config) => {
                            let acceptor = tokio_rustls::TlsAcceptor::from(config);
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(Curt(stream), peer, handler, seen).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            seen,
            runtime: Some(runtime),
        }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The requests that reached it.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A TLS stream that ends without a last word: a client that has closed already would answer it with a reset, and
/// its tunnel's record would say so, now and then.
struct Curt(tokio_rustls::server::TlsStream<TcpStream>);

impl AsyncRead for Curt {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Curt {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.0.get_mut().0).poll_shutdown(cx)
    }
}

/// A free port of 127.0.0.1.
fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    handler: Arc<dyn Fn(&Request) -> Response + Send + Sync>,
    seen: Arc<Mutex<Vec<Seen>>>,
) {
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (handler, seen) = (handler.clone(), seen.clone());
        async move {
            seen.lock().unwrap().push(Seen {
                line: format!("{} {}", request.method(), request.uri()),
                headers: request.headers().clone(),
                peer,
            });
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let request = Request::from_parts(parts, body);
            // A handler may wait for a program.
            let response = tokio::task::spawn_blocking(move || handler(&request)).await;
            Ok::<_, hyper::Error>(response.unwrap_or_else(|_| answer(500, "")))
        }
    });
    // A client that leaves is no failure of the server's.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// An answer.
pub fn answer(status: u16, body: impl Into<Bytes>) -> Response {
    http::Response::builder()
        .status(status)
        .body(Full::new(body.into()))
        .unwrap()
}

/// Serves the files of a folder; a folder's `index.html` stands for it.
pub fn folder(root: &Path) -> impl Fn(&Request) -> Response + Send + Sync + 'static + use<> {
    let root = root.to_owned();
    move |request| {
        let path = request.uri().path().trim_start_matches('/');
        let mut file = root.join(path);
        if path.split('/').any(|part| part == "..") {
            return answer(404, "");
        }
        if file.is_dir() {
            file = file.join("index.html");
        }
        let Ok(bytes) = std::fs::read(&file) else {
            return answer(404, "there is no such file\n");
        };
        let is_page = file
            .extension()
            .is_some_and(|extension| extension == "html");
        let mut response = answer(200, bytes);
        if is_page {
            let page = http::HeaderValue::from_static("text/html");
            response.headers_mut().insert("content-type", page);
        }
        response
    }
}

/// Serves the repositories below a folder by git's own CGI program.
pub fn git(
    program: &Path,
    root: &Path,
) -> impl Fn(&Request) -> Response + Send + Sync + 'static + use<> {
    let (program, root) = (program.to_owned(), root.to_owned());
    move |request| {
        let field = |name: &str| {
            let value = request.headers().get(name);
            value.map_or("", |value| value.to_str().unwrap()).to_owned()
        };
        let mut child = Command::new(&program)
            .env("GIT_PROJECT_ROOT", &root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            // The repository may belong to somebody else than who runs the tests.
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*")
            .env("REQUEST_METHOD", request.method().as_str())
            .env("PATH_INFO", request.uri().path())
            .env("QUERY_STRING", request.uri().query().unwrap_or(""))
            .env("CONTENT_TYPE", field("content-type"))
            .env("CONTENT_LENGTH", request.body().len().to_string())
            .env("HTTP_CONTENT_ENCODING", field("content-encoding"))
            .env("GIT_PROTOCOL", field("git-protocol"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let body = request.body().clone();
        let writer = std::thread::spawn(move || stdin.write_all(&body));
        let output = child.wait_with_output().unwrap().stdout;
        let _ = writer.join();
        let end = output
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap();
        let (head, body) = (&output[..end], &output[end + 4..]);
        let mut response = answer(200, body.to_vec());
        for line in std::str::from_utf8(head).unwrap().lines() {
            let (name, value) = line.split_once(": ").unwrap();
            if name == "Status" {
                *response.status_mut() = value[..3].parse().unwrap();
            } else {
                let name: http::HeaderName = name.parse().unwrap();
                response.headers_mut().insert(name, value.parse().unwrap());
            }
        }
        response
    }
}
