//! What holds where a rule says nothing else.

use super::*;

#[test]
fn timeouts_are_layered() {
    let loaded = loaded(
        "version: 1\ndefaults: {timeouts: {connect: 20s, idle: 2h}}\nrules: [{name: r, timeouts: {connect: {address: 1s}}, direct: true}]\ndefault: {direct: true}\n",
    );
    let rule = loaded.policy.rules[0].timeouts.as_ref().unwrap();
    assert_eq!(loaded.policy.timeouts.connect, Duration::from_secs(20));
    assert_eq!(rule.connect, Duration::from_secs(20));
    assert_eq!(rule.connect_address, Duration::from_secs(1));
    assert_eq!(rule.idle, Duration::from_hours(2));
}

#[test]
fn a_circuit_is_off_unless_it_is_set() {
    assert_eq!(
        loaded("version: 1\nrules: []\ndefault: {direct: true}\n")
            .policy
            .circuit,
        None
    );
    let policy = |circuit: &str| {
        format!(
            "version: 1\ndefaults: {{circuit: {circuit}}}\nrules: []\ndefault: {{direct: true}}\n"
        )
    };
    let set = loaded(&policy("{fails: 3, within: 30s, open: 1h}"))
        .policy
        .circuit;
    let expected = Circuit {
        fails: 3,
        within: Duration::from_secs(30),
        open: Duration::from_hours(1),
    };
    assert_eq!(set, Some(expected));
    for (circuit, expected) in [
        ("{fails: 3, within: 30s}", "2:22 `circuit` needs `open`"),
        (
            "{fails: 0, within: 30s, open: 1m}",
            "2:29 0 is no number of failures for a circuit",
        ),
        (
            "{fails: 1001, within: 30s, open: 1m}",
            "2:29 1001 is no number of failures for a circuit",
        ),
        (
            "{fails: 3, within: 61m, open: 1m}",
            "2:40 a circuit counts, and stays open, for an hour at most",
        ),
        (
            "{fails: 3, within: 1m, open: 2h}",
            "2:50 a circuit counts, and stays open, for an hour at most",
        ),
        (
            "{fails: 3, within: 0s, open: 1m}",
            "2:40 `0s` is not a duration such as 250ms, 5s, 1h or 1m30s",
        ),
        (
            "{fials: 3, within: 1m, open: 1m}",
            "2:22 `fials` is no key of `circuit`",
        ),
        ("true", "2:21 `circuit` is a mapping, not a text"),
    ] {
        assert_eq!(mistakes(&policy(circuit)), [expected], "{circuit}");
    }
}

#[test]
fn open_tunnels_go_on_unless_the_policy_says_otherwise() {
    let policy = |line: &str| format!("version: 1\n{line}\nrules: []\ndefault: {{direct: true}}\n");
    for (line, expected) in [
        ("", OnReload::Keep),
        ("on_reload: keep", OnReload::Keep),
        ("on_reload: close_blocked", OnReload::CloseBlocked),
    ] {
        assert_eq!(loaded(&policy(line)).policy.on_reload, expected, "{line}");
    }
    for (line, expected) in [
        (
            "on_reload: close",
            "2:12 `close` is not one of keep, close_blocked",
        ),
        (
            "on_reload: true",
            "2:12 `true` is not one of keep, close_blocked",
        ),
        ("on_reload:", "2:1 `on_reload` has no value"),
        ("on_relod: keep", "2:1 `on_relod` is no key of the policy"),
        (
            "defaults: {on_reload: keep}",
            "2:12 `on_reload` is no key of `defaults`",
        ),
    ] {
        assert_eq!(mistakes(&policy(line)), [expected], "{line}");
    }
}

#[test]
fn nothing_is_looked_at_unasked_unless_it_is_set() {
    assert_eq!(
        loaded("version: 1\nrules: []\ndefault: {direct: true}\n")
            .policy
            .triage,
        None
    );
    let policy = |triage: &str| {
        format!(
            "version: 1\ndefaults: {{triage: {triage}}}\nrules: []\ndefault: {{direct: true}}\n"
        )
    };
    let set = loaded(&policy("{fails: 3, within: 5m, every: 10m}"))
        .policy
        .triage;
    let expected = Triage {
        fails: 3,
        within: Duration::from_mins(5),
        every: Duration::from_mins(10),
    };
    assert_eq!(set, Some(expected));
    for (triage, expected) in [
        ("{fails: 3, within: 30s}", "2:21 `triage` needs `every`"),
        (
            "{fails: 0, within: 30s, every: 1m}",
            "2:28 0 is no number of failures for a look",
        ),
        (
            "{fails: 101, within: 30s, every: 1m}",
            "2:28 101 is no number of failures for a look",
        ),
        (
            "{fails: 3, within: 61m, every: 10m}",
            "2:39 failures are counted for an hour at most",
        ),
        (
            "{fails: 3, within: 1m, every: 59s}",
            "2:50 a target is looked at once a minute at most, and once a day at least",
        ),
        (
            "{fails: 3, within: 1m, every: 25h}",
            "2:50 a target is looked at once a minute at most, and once a day at least",
        ),
        ("true", "2:20 `triage` is a mapping, not a text"),
    ] {
        assert_eq!(mistakes(&policy(triage)), [expected], "{triage}");
    }
}
