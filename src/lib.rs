//! Routecause: a forward HTTP/CONNECT egress proxy that routes by policy and says *why* things fail.
//!
//! This page is the map: the words, the floors, and the way of one request. Read it once, then follow one CONNECT from
//! [`listen::accept`] to [`exchange::Exchange`].
//!
//! # Words
//!
//! A *client* asks for a *target*; the *origin* is the server at the end of the way, an *upstream* a proxy in between. The
//! *policy* has *guards*, which no rule overrides, and *rules*; the rule that decides leads to a *route*. Each try of an
//! address is an *attempt* of a *hop*. What ended the request is its *cause*, in a *phase*, and some *side* is behind it.
//! The request leaves one *record*.
//!
//! # Floors
//!
//! A module uses its own floor and those above it in this list, never one below; `tests/floors.rs` holds that.
//!
//! | floor | modules | what it is |
//! | --- | --- | --- |
//! | 0 words | [`target`] [`client`] [`timeouts`] [`secret`] [`cause`] [`record`] | what is spoken of: no I/O, no clock |
//! | 1 judgement | [`policy`] [`config`] | what is allowed, as a pure walk; how it is written, and every mistake in it |
//! | 2 mechanisms | [`net`] [`relay`] [`tls`] | resolve, connect, ask an upstream, carry bytes, follow and shake TLS hands: each with one error enum |
//! | 3 ways out, telling | [`failure`] [`observe`] [`memory`] [`exchange`] [`route`] | what went wrong, who is told, and the one seam for every way out |
//! | 4 serving | [`snapshot`] [`proxy`] [`listen`] | a request served under the policy of its moment |
//! | 5 running | [`app`] | workers and their listeners, reload, drain |
//! | 6 command line | [`cli`] | what a person types and reads; the only floor that prints and exits |
//!
//! # The way of one CONNECT
//!
//! 1. [`listen::accept`] takes the connection if there is room, and starts its one task, on its worker ([`app::workers`]): there
//!    it stays.
//! 2. `listen::http` runs hyper on it, through a stream that keeps the head's time limits and knows what is no HTTP.
//! 3. [`proxy::Proxy::handle`] opens an [`exchange::Exchange`], the guard that leaves exactly one record, and makes a
//!    [`target::Target`]: the one canonical form that everything behind it sees.
//! 4. [`policy::Policy::step`] decides, purely. Where it [`Needs`](policy::Step::Needs) addresses they are looked up, and the
//!    same walk goes on.
//! 5. [`route::Dial::dial`] opens the way: [`route::direct`] resolves, asks the guards for each address and connects
//!    ([`net::connect`]); [`route::upstream`] connects to its proxy and asks it ([`net::upstream`]). Each step is noted on the
//!    [`exchange::Trail`]. A client that leaves meanwhile ends it. Under `preflight: tls` a connection of its own comes
//!    first, for a handshake of ours ([`tls::handshake`]) whose certificate [`tls::trust`] judges.
//! 6. The 200 is written, hyper gives the connection back, and [`proxy::tunnel`] runs in the same task:
//!    [`relay::relay`] carries bytes until both directions have ended, while a [`tls::ledger::Ledger`] follows the handshake.
//! 7. The [`relay::End`] becomes the exchange's; [`failure::classify`], the only maker of a [`cause::Cause`], names it, and
//!    [`memory::Memory`] sees the [`record::Record`] on its way to [`observe`]: what recent ones showed becomes its suspects.
//!
//! Whatever fails on the way is a [`failure::Failure`] that travels by `?` to [`proxy::Proxy::handle`], where
//! [`proxy::respond`] makes it an answer: the cause in the reason phrase, in `Proxy-Status` and in the body.
//!
//! # The way of one GET
//!
//! 1 to 4 are the same. Then `proxy::forward` takes a kept connection for the route and target from the [`proxy::pool`], or
//! dials one by the same [`route::Dial`]; [`proxy::headers`] says what of the head leaves; the answer's body passes through
//! [`proxy::answer`], which owns the exchange and ends it with the last byte, with an error, or when it is dropped.
//!
//! # What always holds
//!
//! 1. [`policy`] has no async, clock, socket or lock.
//! 2. Every request leaves exactly one record, whatever ends it; so does a connection that never became one.
//! 3. Only [`failure::classify`] and its parts name a cause, by exhaustive matches.
//! 4. Every way out is a [`route::Dial`], built in [`route::assemble`] alone.
//! 5. Only an [`policy::guard::Admitted`] address is dialled, and only [`policy::guard::Guards`] makes one.
//! 6. Hop-by-hop fields and credentials never cross; a [`secret::Secret`] has no `Debug` and no `Display` of its content.
//! 7. A reload replaces the whole [`snapshot::Snapshot`] or nothing; a request keeps the one that it began with.
//! 8. Only [`cli`] prints and exits; only [`config::env`], and the parser of flags, read the environment; the loader of the
//!    system's certificates reads `SSL_CERT_FILE` and `SSL_CERT_DIR` itself.

#![warn(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::exit,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        reason = "tests"
    )
)]

pub mod app;
pub mod cause;
pub mod cli;
pub mod client;
pub mod config;
pub mod exchange;
pub mod failure;
pub mod listen;
pub mod memory;
pub mod net;
pub mod observe;
pub mod policy;
pub mod proxy;
pub mod record;
pub mod relay;
pub mod route;
pub mod secret;
pub mod snapshot;
pub mod target;
pub mod timeouts;
pub mod tls;
