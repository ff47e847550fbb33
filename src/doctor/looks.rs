//! Several looks at the same target: whether it is always so. Pure.

use super::Verdict;
use super::verdict::Certainty::Strong;

/// Says what verdicts of one target, the earliest first, amount to: the last one where they agree, else that it comes and goes;
/// nothing where nobody looked.
pub fn over(looks: &[Verdict]) -> Option<Verdict> {
    let last = looks.last()?.clone();
    let alike = looks.iter().filter(|look| look.id == last.id).count();
    if alike == looks.len() {
        return Some(last.because([format!("it was so {alike} times of {alike}")]));
    }
    let fine = looks.iter().filter(|look| look.is_fine()).count();
    let told = |(at, look): (usize, &Verdict)| format!("look {}: {}", at + 1, look.sentence);
    let sentence = if fine > 0 {
        format!("it comes and goes: fine {fine} times of {}", looks.len())
    } else {
        "it fails at every look, and not always in the same way".to_owned()
    };
    let failing = looks.iter().rev().find(|look| !look.is_fine());
    let verdict = Verdict::new("intermittent", Strong, sentence)
        .because(looks.iter().enumerate().map(told))
        .but("one look may meet the good moment: look again when it fails");
    Some(match failing.and_then(|look| look.fix.clone()) {
        Some(fix) => verdict.mend(fix),
        None => verdict,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::verdict::Certainty::Certain;

    fn look(id: &'static str) -> Verdict {
        let verdict = Verdict::new(id, Certain, format!("it is {id}"));
        verdict.mend_if(id != "fine", "route it elsewhere")
    }

    #[test]
    fn what_is_always_so_is_the_verdict_and_what_is_not_comes_and_goes() {
        for (looks, id, sentence, evidence) in [
            (
                &["fine", "fine"][..],
                "fine",
                "it is fine",
                "it was so 2 times of 2",
            ),
            (
                &["ip_blocking", "ip_blocking", "ip_blocking"],
                "ip_blocking",
                "it is ip_blocking",
                "it was so 3 times of 3",
            ),
            (
                &["fine", "ip_blocking", "fine"],
                "intermittent",
                "it comes and goes: fine 2 times of 3",
                "look 2: it is ip_blocking",
            ),
            (
                &["server_down", "ip_blocking"],
                "intermittent",
                "it fails at every look, and not always in the same way",
                "look 1: it is server_down",
            ),
        ] {
            let verdicts: Vec<_> = looks.iter().map(|id| look(id)).collect();
            let verdict = over(&verdicts).unwrap();
            assert_eq!(
                (verdict.id, &*verdict.sentence),
                (id, sentence),
                "{looks:?}"
            );
            assert!(
                verdict.evidence.iter().any(|line| line == evidence),
                "{verdict:?}"
            );
            assert_eq!(
                verdict.fix.is_some(),
                looks.iter().any(|id| *id != "fine"),
                "{looks:?}"
            );
        }
    }
}
