//! The fuzz targets on a stable compiler: every seed, and seeds changed in every way that a small generator knows, for a bounded
//! number of inputs. `ROUTECAUSE_TEST_FUZZ=200000` runs so many of each; `cargo +nightly fuzz run --fuzz-dir tests/fuzz`
//! fuzzes with coverage.

#[path = "fuzz/targets.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// What is done to a seed.
#[derive(Clone, Debug)]
enum Change {
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// A piece of another seed.
    Splice(Index, Index, Index),
    Repeat(Index, usize),
    Cut(Index),
}

/// What means something to a parser of ours.
const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"0",
    b"-1",
    b"+1",
    b"65536",
    b"0x1",
    b"chunked",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: b\r\n",
    b"Connection: ",
    b"\xff",
    b"\x80",
    b"[",
    b"]",
    b"@",
    b"%",
    b"/smuggled",
    b"{host}",
    b"HTTP/1.1",
    b"{",
    b"}",
    b"- ",
    b"version: 1\n",
    b"&a",
    b"*a",
];

fn change() -> impl Strategy<Value = Change> {
    let word = prop_oneof![
        proptest::sample::select(WORDS).prop_map(<[u8]>::to_vec),
        prop::collection::vec(any::<u8>(), 1..5),
    ];
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, bits)| Change::Flip(at, bits)),
        (any::<Index>(), word).prop_map(|(at, word)| Change::Insert(at, word)),
        (any::<Index>(), 1_usize..20).prop_map(|(at, count)| Change::Remove(at, count)),
        (any::<Index>(), any::<Index>(), any::<Index>())
            .prop_map(|(at, seed, from)| Change::Splice(at, seed, from)),
        (any::<Index>(), 2_usize..200).prop_map(|(at, count)| Change::Repeat(at, count)),
        any::<Index>().prop_map(Change::Cut),
    ]
}

fn apply(change: &Change, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let place = |at: &Index, bytes: &[u8]| at.index(bytes.len() + 1);
    match change {
        Change::Flip(at, bits) => {
            let at = place(at, bytes);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= bits;
            }
        }
        Change::Insert(at, word) => {
            let at = place(at, bytes);
            bytes.splice(at..at, word.iter().copied());
        }
        Change::Remove(at, count) => {
            let at = place(at, bytes);
            bytes.drain(at..bytes.len().min(at + count));
        }
        Change::Splice(at, seed, from) => {
            let (at, seed) = (place(at, bytes), &seeds[seed.index(seeds.len())]);
            bytes.splice(at..at, seed[place(from, seed)..].iter().copied());
        }
        Change::Repeat(at, count) => {
            let at = place(at, bytes);
            if let Some(byte) = bytes.get(at).copied() {
                bytes.splice(at..at, std::iter::repeat_n(byte, *count));
            }
        }
        Change::Cut(at) => bytes.truncate(place(at, bytes)),
    }
}

/// Feeds a target with its seeds and with changed ones.
#[track_caller]
fn feed(name: &str, cases: u32, target: fn(&[u8])) {
    let folder = format!("{}/tests/fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
    let files = fs::read_dir(&folder).unwrap();
    let seeds: Vec<_> = files
        .map(|file| fs::read(file.unwrap().path()).unwrap())
        .collect();
    assert!(seeds.len() >= 6, "{folder}");
    target(b"");
    for seed in &seeds {
        target(seed);
    }
    // The same every time, unless new ones are looked for.
    let wanted = std::env::var("ROUTECAUSE_TEST_FUZZ");
    let (cases, rng_seed) = wanted.map_or((cases, RngSeed::Fixed(1)), |cases| {
        (cases.parse().unwrap(), RngSeed::Random)
    });
    let config = Config {
        cases,
        rng_seed,
        failure_persistence: None,
        ..Config::default()
    };
    let input = (any::<Index>(), prop::collection::vec(change(), 1..8));
    let ran = TestRunner::new(config).run(&input, |(seed, changes)| {
        let mut bytes = seeds[seed.index(seeds.len())].clone();
        for change in &changes {
            apply(change, &mut bytes, &seeds);
        }
        let ran = catch_unwind(AssertUnwindSafe(|| target(&bytes)));
        prop_assert!(ran.is_ok(), "{:?}", bytes.escape_ascii().to_string());
        Ok(())
    });
    ran.unwrap();
}

macro_rules! targets {
    ($($name:ident: $cases:literal),+ $(,)?) => {$(
        #[test]
        fn $name() {
            feed(stringify!($name), $cases, targets::$name);
        }
    )+};
}

targets! {
    authority: 5000,
    client_hello: 3000,
    connect_reply: 1000,
    handler: 500,
    log_line: 2000,
    no_proxy: 3000,
    policy: 300,
    proxy_header: 3000,
}
