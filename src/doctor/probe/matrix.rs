//! Where a handshake fails: what differs where it does not.

use std::io::ErrorKind;
use std::net::SocketAddr;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout};

use super::{Control, DIRECT, Doctor, Failed, HELLO, PAUSE, large, probe};
use crate::cause::Side;
use crate::doctor::facts::{Cell, Content};
use crate::exchange::Trail;
use crate::failure::handshake::Handshake;
use crate::failure::{Failure, classify};
use crate::net::connect::Shape;
use crate::target::{Host, Target};
use crate::tls::handshake::{HandshakeError, Hello, Offer, Reached};

/// The segments of a way that bears little.
const SMALL_SEGMENT: u32 = 536;

/// Another name than the target's, where there is no control's.
const DECOY: &str = "www.example.com";

impl Doctor<'_> {
    /// Handshakes with other contents, a control before and behind them.
    pub(super) async fn matrix(&self, address: SocketAddr) -> Vec<Cell> {
        let target = &self.plan.target;
        let control = self.plan.controls_of(DIRECT).into_iter().next();
        let elsewhere = match &control {
            Some(control) => self.address_of(control).await,
            None => None,
        };
        let control = control.map(|control| control.target);
        // Unasked, nobody is told the name of another.
        let may_mix = self.plan.bounds.is_none();
        let decoy = control
            .as_ref()
            .filter(|_| may_mix)
            .map_or_else(|| Host::Name(DECOY.into()), |control| control.host.clone());
        let mut cells = Vec::new();
        let usual = large(&[b"h2", b"http/1.1"]);
        let small = Offer::of(&[b"h2", b"http/1.1"]);
        let only12 = Offer {
            hello: Hello::Only12,
            ..Offer::of(&[b"http/1.1"])
        };
        let mut plan = vec![
            (
                Content::DecoyName,
                address,
                &decoy,
                Shape::default(),
                &usual,
            ),
            (
                Content::Small,
                address,
                &target.host,
                Shape::default(),
                &small,
            ),
            (
                Content::Only12,
                address,
                &target.host,
                Shape::default(),
                &only12,
            ),
            (
                Content::SmallSegments,
                address,
                &target.host,
                Shape {
                    mss: Some(SMALL_SEGMENT),
                    ..Shape::default()
                },
                &usual,
            ),
        ];
        let unnamed = Host::Ip(address.ip());
        plan.push((Content::NoName, address, &unnamed, Shape::default(), &usual));
        if let Some(elsewhere) = elsewhere.filter(|_| may_mix) {
            plan.push((
                Content::NameElsewhere,
                elsewhere,
                &target.host,
                Shape::default(),
                &usual,
            ));
        }
        (self.progress)("what differs: name, address, size, version");
        let tries = plan
            .into_iter()
            .map(|(content, address, name, shape, offer)| async move {
                let mut cells = Vec::new();
                for _ in 0..2 {
                    sleep(PAUSE).await;
                    let begun = Instant::now();
                    let outcome = self.say(address, name, shape, offer).await;
                    let outcome = probe(name.to_string(), begun, outcome);
                    let is_fine = outcome.is_fine();
                    cells.push(Cell { content, outcome });
                    if is_fine {
                        break;
                    }
                }
                cells
            });
        cells.extend(join_all(tries).await.into_iter().flatten());
        (self.progress)("what differs: bytes that are no TLS");
        let begun = Instant::now();
        let heard = self.make_noise(address).await;
        cells.push(Cell {
            content: Content::Noise,
            outcome: probe("noise".to_owned(), begun, heard),
        });
        if let (Some(control), Some(elsewhere)) = (control, elsewhere) {
            let begun = Instant::now();
            let outcome = self
                .say(elsewhere, &control.host, Shape::default(), &usual)
                .await;
            cells.push(Cell {
                content: Content::Control,
                outcome: probe(control.host.to_string(), begun, outcome),
            });
        }
        cells
    }

    async fn address_of(&self, control: &Control) -> Option<SocketAddr> {
        let target = &control.target;
        if let Some(address) = control.address {
            return Some(SocketAddr::new(address, target.port));
        }
        let inquiry = self.names.of_target(&target.host, None);
        let found = inquiry
            .lookup(&target.host, self.policy.timeouts.dns, &Trail::default())
            .await;
        Some(SocketAddr::new(*found.ok()?.first()?, target.port))
    }

    /// Shakes hands straight with an address. Any word of the server is success.
    async fn say(
        &self,
        address: SocketAddr,
        name: &Host,
        shape: Shape,
        offer: &Offer<'_>,
    ) -> Result<(), Failure> {
        let conn = self.connect(address, shape).await?;
        let target = Target::new(Host::Ip(address.ip()), address.port());
        match self.shake_on(conn, &target, name, offer).await {
            Ok(_) => Ok(()),
            Err(Failed(failure, _)) if has_answered(&failure) => Ok(()),
            Err(Failed(failure, _)) => Err(failure),
        }
    }

    /// Sends what is no TLS: a server answers, ends, or resets what it has acknowledged.
    async fn make_noise(&self, address: SocketAddr) -> Result<(), Failure> {
        let conn = self.connect(address, Shape::default()).await?;
        let carrier = conn.wire.carrier().clone();
        let connected = Instant::now();
        let mut wire = conn.wire;
        let mut buffer = [0; 64];
        let talk = async {
            wire.write_all(&[b'x'; 517]).await?;
            wire.read(&mut buffer).await
        };
        let error = match timeout(HELLO, talk).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => HandshakeError::Reset {
                reached: Reached::ClientHello,
                since_write: Some(connected.elapsed()),
                source: error,
            },
            Ok(Err(source)) => HandshakeError::Broken {
                reached: Reached::ClientHello,
                source,
            },
            // Many servers wait for more.
            Err(_) => return Ok(()),
        };
        let failure = Failure::Handshake(Box::new(Handshake {
            server: address.to_string(),
            server_name: None,
            error,
            tcp: carrier.tcp_info().ok(),
            since_connect: connected.elapsed(),
            is_end_to_end: true,
        }));
        if classify(&failure).side() == Side::Origin {
            return Ok(());
        }
        Err(failure)
    }
}

/// Whether the server, or whoever stands in its place, has said something.
pub(super) fn has_answered(failure: &Failure) -> bool {
    let Failure::Handshake(handshake) = failure else {
        return false;
    };
    match handshake.error.reached() {
        None => true,
        Some(reached) => {
            reached > Reached::ClientHello
                || matches!(handshake.error, HandshakeError::Alert { .. })
        }
    }
}
