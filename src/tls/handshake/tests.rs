use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};

use super::super::trust::tests::ca;
use super::*;

const LIMIT: Duration = Duration::from_secs(3);

/// Shakes hands as `a.example` wants it with whatever `server` is.
async fn meet<F: Future>(
    roots: Roots,
    server: impl FnOnce(DuplexStream) -> F,
) -> (Result<Established<DuplexStream>, HandshakeError>, F::Output) {
    let (near, far) = duplex(64 * 1024);
    let host = Host::parse("a.example").unwrap();
    let roots = Arc::new(roots);
    tokio::join!(handshake(near, &host, &roots, LIMIT), server(far))
}

/// Takes the ClientHello and says `words`; then it falls silent, or ends.
async fn say(mut far: DuplexStream, words: &[u8], then_ends: bool) -> Option<DuplexStream> {
    let mut hello = [0; 5];
    far.read_exact(&mut hello).await.unwrap();
    let mut rest = vec![0; usize::from(u16::from_be_bytes([hello[3], hello[4]]))];
    far.read_exact(&mut rest).await.unwrap();
    far.write_all(words).await.unwrap();
    (!then_ends).then_some(far)
}

/// A ServerHello in one record, without extensions, that chooses a version and an RSA suite of TLS 1.2.
fn server_hello(version: u8, random: [u8; 32]) -> Vec<u8> {
    let mut body = vec![3, version];
    body.extend(random);
    body.extend([0, 0xc0, 0x2f, 0]);
    let mut hello = vec![2, 0, 0, u8::try_from(body.len()).unwrap()];
    hello.extend(body);
    let mut record = vec![22, 3, 3, 0, u8::try_from(hello.len()).unwrap()];
    record.extend(hello);
    record
}

async fn fails(words: &[u8], then_ends: bool) -> HandshakeError {
    let (outcome, _far) = meet(Roots::of([]), |far| say(far, words, then_ends)).await;
    outcome.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn a_silence_is_told_by_how_far_it_came() {
    let hello = server_hello(3, [7; 32]);
    let cases: [(&[u8], Reached); 3] = [
        (b"", Reached::ClientHello),
        (&hello[..20], Reached::FirstByte),
        (&hello, Reached::ServerHello),
    ];
    for (words, expected) in cases {
        let error = fails(words, false).await;
        let HandshakeError::TimedOut { reached, after, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!((reached, after), (expected, LIMIT));
    }
}

#[tokio::test]
async fn an_end_is_told_by_how_far_it_came() {
    let hello = server_hello(3, [7; 32]);
    let cases: [(&[u8], Reached); 3] = [
        (b"", Reached::ClientHello),
        (&hello[..20], Reached::FirstByte),
        (&hello, Reached::ServerHello),
    ];
    for (words, expected) in cases {
        let error = fails(words, true).await;
        let HandshakeError::Closed { reached } = error else {
            panic!("{error:?}");
        };
        assert_eq!(reached, expected);
    }
}

#[tokio::test]
async fn what_is_no_tls_is_quoted() {
    for words in ["HTTP/1.1 400 Bad Request\r\n\r\nno", "-"] {
        let error = fails(words.as_bytes(), true).await;
        assert!(matches!(error, HandshakeError::NotTls { .. }), "{error:?}");
        let line = words.lines().next().unwrap();
        assert!(error.to_string().ends_with(&format!("{line:?}")), "{error}");
    }
}

#[tokio::test]
async fn alerts_and_mismatches_are_told_apart() {
    let error = fails(&[21, 3, 3, 0, 2, 2, 112], true).await;
    assert!(
        matches!(
            error,
            HandshakeError::Alert {
                alert: Alert(112),
                reached: Reached::FirstByte
            }
        ),
        "{error:?}"
    );
    let error = fails(&server_hello(1, [7; 32]), true).await;
    assert!(matches!(error, HandshakeError::Version), "{error:?}");
    let mut random = [7; 32];
    random[24..].copy_from_slice(b"DOWNGRD\x01");
    let error = fails(&server_hello(3, random), true).await;
    assert!(matches!(error, HandshakeError::Downgrade), "{error:?}");
    let error = fails(&[22, 3, 3, 0, 4, 99, 0, 0, 0], true).await;
    assert!(matches!(error, HandshakeError::Protocol(_)), "{error:?}");
}

#[tokio::test]
async fn a_handshake_offers_h2_names_the_host_and_ends_in_order() {
    let ca = ca("mitmproxy");
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    let leaf = params.signed_by(&key, &ca).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let serve = async |far| {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let stream = acceptor.accept(far).await.unwrap();
        let (_, server) = stream.get_ref();
        assert_eq!(server.server_name(), Some("a.example"));
        assert_eq!(server.alpn_protocol(), Some(&b"h2"[..]));
        stream
    };
    let (met, mut server) = meet(Roots::of([ca.der().clone()]), serve).await;
    let established = met.unwrap();
    // Its root is installed: the product is named, and nothing fails.
    assert_eq!(established.judgement.verdict, Verdict::KnownInterceptor);
    let (end, ()) = tokio::join!(
        async {
            let end = server.read(&mut [0; 1]).await.unwrap();
            server.shutdown().await.unwrap();
            end
        },
        established.close()
    );
    assert_eq!(end, 0);
}
