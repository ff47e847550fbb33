//! Wget.

use super::{Url, Variables, Way, Why, by, filled};

pub(super) fn way(variables: Variables<'_>, url: &Url) -> Way {
    let names: &[_] = if url.is_tls {
        &["https_proxy"]
    } else {
        &["http_proxy"]
    };
    let Some((variable, _)) = filled(variables, names) else {
        return Way::Direct(Why::Unset);
    };
    let list = variables("no_proxy").unwrap_or_default();
    let exempts = |entry: &&str| {
        // Blanks behind a comma are skipped, those before it are not.
        let entry = entry.trim_start().to_lowercase();
        let rest = url.host.strip_suffix(&*entry);
        !entry.is_empty()
            && rest.is_some_and(|rest| {
                rest.is_empty() || rest.ends_with('.') || entry.starts_with('.')
            })
    };
    match list.split(',').find(exempts) {
        Some(entry) => by(entry),
        None => Way::Proxy(variable),
    }
}
