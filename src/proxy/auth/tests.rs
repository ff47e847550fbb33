use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use argon2::password_hash::PasswordHasher as _;
use argon2::{Algorithm, Params, Version};

use super::*;
use crate::config::{Environment, Options, Source, load};

const RIGHT: &str = "abcdefghijklmnopqrstuvwxyzABCDEF";

/// Beyond so many standard deviations two kinds of tries differ: by chance, once in 100,000 times.
const TOLD_APART: f64 = 4.5;

/// The hash of a password, by a check of so many passes over so many KiB.
fn hash(password: &str, kib: u32, passes: u32) -> Secret {
    let params = Params::new(kib, passes, 1, None).unwrap();
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = argon2.hash_password_with_salt(password.as_bytes(), b"saltsaltsalt");
    Secret::new(hash.unwrap().to_string())
}

/// A gate for these users.
fn gate(folder: &Path, users: &[(&str, Secret)]) -> Gate {
    let file = folder.join("users.txt");
    let lines = users
        .iter()
        .map(|(name, hash)| format!("{name}:{}\n", hash.reveal()));
    std::fs::write(&file, lines.collect::<String>()).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let text = format!(
        "version: 1\nserver: {{auth: {{users: {}}}}}\nrules: []\ndefault: {{direct: true}}\n",
        file.display()
    );
    let name = "p.yaml".to_owned();
    let options = Options::serve(jiff::Timestamp::UNIX_EPOCH);
    let source = Source::Text { name, text };
    let loaded = load(&source, &Environment::default(), &options);
    let loaded = loaded.unwrap_or_else(|report| panic!("{report}"));
    Gate::new(loaded.server.users.unwrap())
}

/// By how many standard deviations the ranks of two equally many durations differ (Mann and Whitney's U). What else goes on
/// makes some of them much longer, which changes no rank of the others.
#[expect(clippy::cast_precision_loss, reason = "some thousands")]
fn difference(samples: &[Vec<Duration>; 2]) -> f64 {
    let mut all: Vec<_> = (0..2)
        .flat_map(|kind| samples[kind].iter().map(move |took| (took, kind)))
        .collect();
    all.sort();
    // Those that took alike share their ranks.
    let (mut rank, mut sum) = (0, 0.0);
    for alike in all.chunk_by(|one, other| one.0 == other.0) {
        let first = alike.iter().filter(|(_, kind)| *kind == 0).count();
        sum += first as f64 * (rank as f64 + (alike.len() + 1) as f64 / 2.0);
        rank += alike.len();
    }
    let count = samples[0].len() as f64;
    let expected = count * (2.0 * count + 1.0) / 2.0;
    (sum - expected) / (expected * count / 6.0).sqrt()
}

/// Times two kinds of tries in turns, so that whatever else goes on strikes both, and says whether they differ.
async fn are_told_apart(
    tries: usize,
    first: impl AsyncFn(usize),
    second: impl AsyncFn(usize),
) -> bool {
    // A difference that is there shows each time; one by chance does not come three times.
    for _ in 0..3 {
        let mut samples = [Vec::with_capacity(tries), Vec::with_capacity(tries)];
        for n in 0..2 * tries {
            // First, second, second, first.
            let kind = usize::from(matches!(n % 4, 1 | 2));
            let begun = Instant::now();
            if kind == 0 {
                first(n).await;
            } else {
                second(n).await;
            }
            samples[kind].push(begun.elapsed());
        }
        if difference(&samples).abs() < TOLD_APART {
            return false;
        }
    }
    true
}

#[tokio::test]
async fn a_wrong_password_takes_as_long_wherever_it_is_wrong() {
    const TRIES: usize = 4000;
    let [cheap, dear] = [1, 4].map(|passes| &*Box::leak(Box::new(hash(RIGHT, 8, passes))));
    // Which memory argon2id goes through hangs on the password (RFC 9106, section 3.4.1): two that stay the same may differ by
    // that alone, so each try has another wrong letter.
    let guess = |at: usize, hash: &'static Secret| {
        let guesses = (b'!'..b'A').map(|wrong| {
            let (before, behind) = (&RIGHT[..at], &RIGHT[at + 1..]);
            Secret::new(format!("{before}{}{behind}", char::from(wrong)))
        });
        let guesses: Vec<_> = guesses.collect();
        async move |n: usize| {
            let guess = &guesses[n / 4 % guesses.len()];
            assert!(!std::hint::black_box(is_right(guess, hash)));
        }
    };
    let last = RIGHT.len() - 1;
    assert!(
        are_told_apart(TRIES / 4, guess(0, cheap), guess(0, dear)).await,
        "a check that takes longer is not seen"
    );
    assert!(!are_told_apart(TRIES, guess(0, cheap), guess(last, cheap)).await);
}

#[tokio::test]
async fn a_name_that_is_not_there_takes_as_long_as_a_wrong_password() {
    const TRIES: usize = 1000;
    let folder = tempfile::tempdir().unwrap();
    let gate = gate(folder.path(), &[("alice", hash(RIGHT, 64, 1))]);
    let tracker = TaskTracker::new();
    // A client of its own for each, so that none waits and all are noted alike.
    let clients = AtomicU32::new(0);
    let guess = |name: &'static str| {
        let (gate, tracker, clients) = (&gate, &tracker, &clients);
        async move |n: usize| {
            let client = Ipv4Addr::from_bits(clients.fetch_add(1, Ordering::Relaxed));
            let guess = Secret::new(format!("guess {n}"));
            assert!(!gate.knows(name, &guess, client.into(), tracker).await);
        }
    };
    assert!(!are_told_apart(TRIES, guess("alice"), guess("nobody")).await);
}

#[tokio::test]
async fn a_name_that_is_not_there_is_held_against_anyones_hash_and_always_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let users: Vec<_> = (1..=4).map(|passes| hash(RIGHT, 8, passes)).collect();
    let names = ["a", "b", "c", "d"];
    let users: Vec<_> = names.into_iter().zip(users).collect();
    let gate = gate(folder.path(), &users);
    let stand_in = |name: &str| {
        let hash = gate.users.stand_in(gate.chance_of(name)).unwrap();
        users.iter().position(|(_, known)| known == hash).unwrap()
    };
    let chosen: Vec<_> = (0..200).map(|n| stand_in(&format!("nobody-{n}"))).collect();
    let again: Vec<_> = (0..200).map(|n| stand_in(&format!("nobody-{n}"))).collect();
    assert_eq!(chosen, again);
    assert!((0..4).all(|user| chosen.contains(&user)), "{chosen:?}");
    // Not even with the right password of the one that stands in.
    let client = IpAddr::from([192, 0, 2, 1]);
    let right = Secret::new(RIGHT);
    assert!(
        !gate
            .knows("nobody-0", &right, client, &TaskTracker::new())
            .await
    );
}

#[tokio::test]
async fn what_was_right_is_remembered_and_what_was_wrong_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let gate = gate(folder.path(), &[("alice", hash("right", 8, 1))]);
    let tracker = TaskTracker::new();
    let client = IpAddr::from([192, 0, 2, 1]);
    let (right, wrong) = (Secret::new("right"), Secret::new("wrong"));
    assert!(gate.knows("alice", &right, client, &tracker).await);
    assert!(gate.is_remembered(&gate.digest("alice", &right)));
    assert!(!gate.knows("alice", &wrong, client, &tracker).await);
    assert!(
        !gate
            .knows("alic", &Secret::new("eright"), client, &tracker)
            .await
    );
    assert_eq!(
        (gate.known.lock().unwrap().len(), gate.misses_of(client)),
        (1, 2)
    );
}
