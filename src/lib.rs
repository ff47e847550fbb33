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
//! | 1 judgement | [`policy`] [`config`] [`pac`] | what is allowed, as a pure walk; how it is written, and every mistake in it; scripts that name routes |
//! | 2 mechanisms | [`net`] [`relay`] [`tls`] | resolve, connect, ask an upstream, carry bytes, follow and shake TLS hands: each with one error enum |
//! | 3 ways out, telling | [`failure`] [`observe`] [`memory`] [`exchange`] [`route`] | what went wrong, who is told, and the one seam for every way out |
//! | 4 serving | [`snapshot`] [`proxy`] [`listen`] | a request served under the policy of its moment |
//! | 5 running | [`app`] [`admin`] [`doctor`] | workers and their listeners, reload, drain; what is told of all that while it runs; why one URL does not work |
//! | 6 trying out | [`lab`] | a proxy with hosts, an authority and faults of its own, for tests |
//! | 7 command line | [`cli`] | what a person types and reads; the only floor that prints and exits |
//!
//! # The way of one CONNECT
//!
//! 1. [`listen::accept`] takes the connection if there is room, and starts its one task, on its worker ([`app::workers`]): there
//!    it stays. [`listen::door`] finds out whose it is: by a PROXY header, by TLS, or by the kernel's word.
//! 2. `listen::http` runs hyper on it (`listen::http2` where TLS agreed on that), through a stream that keeps the head's time limits and knows what is no HTTP: SOCKS5
//!    goes to `listen::socks`, which asks for the same tunnel as a CONNECT.
//! 3. [`proxy::Proxy::handle`] opens an [`exchange::Exchange`], the guard that leaves exactly one record, and makes a
//!    [`target::Target`]: the one canonical form that everything behind it sees.
//! 4. [`policy::Policy::step`] decides, purely. Where it [`Needs`](policy::Step::Needs) a fact, such as addresses, that is
//!    fetched, and the same walk goes on.
//! 5. [`route::Dial::dial`] opens the way: [`route::direct`] resolves, asks the guards for each address and connects
//!    ([`net::connect`]); [`route::upstream`] connects to its proxy and asks it ([`net::upstream`]), unless
//!    [`route::health`] passes it over; [`route::group`] and [`route::chain`] try several, [`route::pac`] what a script
//!    names. Each step is noted on the [`exchange::Trail`]. A client that leaves meanwhile ends it. Under `preflight: tls` a connection of its own comes
//!    first, for a handshake of ours ([`tls::handshake`]) whose certificate [`tls::trust`] judges.
//!    Where a rule needs the client's first words, the 200 comes before all this, and the walk goes on behind it
//!    ([`proxy::tunnel::Opened::Undecided`]).
//! 6. The 200 is written, hyper gives the connection back, and [`proxy::tunnel`] runs in the same task. `proxy::settle` keeps
//!    the ClientHello until the server's first byte where a chain has hops left, and gives it to the next hop where one
//!    fails; then [`relay::relay`] carries bytes until both directions have ended, while a [`tls::ledger::Ledger`] follows
//!    the handshake.
//! 7. The [`relay::End`] becomes the exchange's; [`failure::classify`], the only maker of a [`cause::Cause`], names it, and
//!    [`memory::Memory`] sees the [`record::Record`] on its way to [`observe`]: what recent ones showed becomes its suspects. Of a
//!    target that keeps failing it has `app::triage` let the [`doctor`] look, where the policy wants that, and adds what was found.
//!
//! Whatever fails on the way is a [`failure::Failure`] that travels by `?` to [`proxy::Proxy::handle`], where
//! [`proxy::respond`] makes it an answer: the cause in the reason phrase, in `Proxy-Status` and in the body.
//!
//! Where there is an admin listener, records pass [`observe::board`] on the way to the log, in a thread of its own: they are
//! counted, kept for a while and told to whoever follows. [`admin`] shows them, and what [`exchange::live`], [`route::health`] and
//! the policy's snapshot know; what it wants of the policy goes to its keeper as a [`app::reload::Wish`].
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
//! 7. A reload replaces the whole [`snapshot::Snapshot`] or nothing; a request keeps the one that it began with. Only where the new
//!    policy says `on_reload: close_blocked` are open tunnels held against it, and cut where it refuses them.
//! 8. Faults exist only where the policy names them, or whoever runs a [`lab`]: [`route::fault`] injects them, and every record that one touched says
//!    so ([`record::Record::faults`]) and is kept from [`memory`].
//! 9. Only [`cli`] prints and exits; only [`config::env`], and the parser of flags, read the environment; the loader of the
//!    system's certificates reads `SSL_CERT_FILE` and `SSL_CERT_DIR` itself, and what systemd passes is read by whoever
//!    takes it.

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

pub mod admin;
pub mod app;
pub mod cause;
pub mod cli;
pub mod client;
pub mod config;
pub mod doctor;
pub mod exchange;
pub mod failure;
pub mod lab;
pub mod listen;
pub mod memory;
pub mod net;
pub mod observe;
pub mod pac;
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
