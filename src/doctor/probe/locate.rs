//! From where on the way a reset comes: a `ClientHello` that lives for one hop more each time.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::matrix::has_answered;
use super::{DIRECT, Doctor, Failed, PAUSE, large};
use crate::doctor::facts::Hop;
use crate::failure::{Failure, classify};
use crate::net::connect::Shape;
use crate::target::{Host, Target};

/// No way is longer.
const MOST_HOPS: u32 = 30;

/// So many hops in a row that say nothing end the walk.
const MOST_SILENT: u32 = 8;

/// A cut that does not come within this does not come.
const CUT: Duration = Duration::from_millis(1500);

impl Doctor<'_> {
    /// Walks to an address until something cuts off a ClientHello with the target's name, or the address is reached.
    pub(super) async fn walk(&self, address: SocketAddr) -> Vec<Hop> {
        let decoy = self.plan.controls_of(DIRECT).first().map_or_else(
            || Host::Name("www.example.com".into()),
            |control| control.target.host.clone(),
        );
        let mut hops: Vec<Hop> = Vec::new();
        let mut silent = 0;
        for number in 1..=MOST_HOPS {
            (self.progress)(&format!("where is it? hop {number}"));
            let shape = Shape {
                hops: Some(number),
                ..Shape::default()
            };
            // A SYN that dies there has the router name itself.
            let (router, is_target) = match timeout(CUT, self.connect(address, shape)).await {
                Ok(Ok(_)) => (Some(address.ip()), true),
                Ok(Err(Failure::Connect(error))) => (error.icmp().map(|icmp| icmp.offender), false),
                Ok(Err(_)) | Err(_) => (None, false),
            };
            let (cuts_name, cuts_decoy) = tokio::join!(
                self.is_cut(address, &self.plan.target.host, number),
                self.is_cut(address, &decoy, number)
            );
            hops.push(Hop {
                number,
                address: router,
                is_target,
                cuts_name,
                cuts_decoy,
            });
            silent = if router.is_some() { 0 } else { silent + 1 };
            if cuts_name || is_target || silent == MOST_SILENT {
                break;
            }
            sleep(PAUSE).await;
        }
        hops
    }

    /// Whether a ClientHello that lives for so many hops is answered with an end.
    async fn is_cut(&self, address: SocketAddr, name: &Host, hops: u32) -> bool {
        let Ok(conn) = self.connect(address, Shape::default()).await else {
            return false;
        };
        // A reset that comes by itself is no answer to what is said.
        sleep(PAUSE).await;
        let socket = conn.wire.carrier().clone();
        if socket.limit_hops(hops).is_err() {
            return false;
        }
        let target = Target::new(Host::Ip(address.ip()), address.port());
        let usual = large(&[b"h2", b"http/1.1"]);
        let shaken = self.shake_on(conn, &target, name, &usual);
        let Ok(Err(Failed(failure, _))) = timeout(CUT, shaken).await else {
            return false;
        };
        let id = classify(&failure).id();
        !has_answered(&failure) && (id.starts_with("tls.reset_") || id.starts_with("tls.closed_"))
    }
}
