//! Products that open TLS, by the names in their certificates.

use x509_parser::prelude::X509Name;

/// Words in the names of issuers, in lower case, and the products that write them. Places are not looked at: `L=Palo
/// Alto` is a town.
const INTERCEPTORS: &[(&str, &str)] = &[
    ("zscaler", "Zscaler"),
    ("fortinet", "Fortinet"),
    ("fortigate", "Fortinet"),
    ("palo alto networks", "Palo Alto Networks"),
    ("blue coat", "Blue Coat"),
    ("bluecoat", "Blue Coat"),
    ("proxysg", "Blue Coat"),
    // Not the bare name: it was that of a public CA as well.
    ("symantec web security", "Symantec"),
    ("netskope", "Netskope"),
    ("goskope", "Netskope"),
    ("sophos", "Sophos"),
    ("kaspersky", "Kaspersky"),
    ("eset ssl filter", "ESET"),
    ("avast", "Avast"),
    ("avg web/mail shield", "AVG"),
    ("bitdefender", "Bitdefender"),
    ("adguard", "AdGuard"),
    ("cisco umbrella", "Cisco Umbrella"),
    ("cloudflare gateway", "Cloudflare Gateway"),
    ("gateway ca - cloudflare", "Cloudflare Gateway"),
    ("mcafee web gateway", "McAfee Web Gateway"),
    ("skyhigh security", "Skyhigh Security"),
    ("forcepoint", "Forcepoint"),
    ("websense", "Forcepoint"),
    ("watchguard", "WatchGuard"),
    ("sonicwall", "SonicWall"),
    ("barracuda networks", "Barracuda"),
    ("cato networks", "Cato Networks"),
    ("menlo security", "Menlo Security"),
    ("iboss", "iboss"),
    ("squid", "Squid"),
    ("mitmproxy", "mitmproxy"),
    ("charles proxy", "Charles"),
    ("fiddlerroot", "Fiddler"),
    ("portswigger", "Burp Suite"),
];

/// The product whose name stands in an issuer's.
pub(super) fn product(issuer: &X509Name<'_>) -> Option<&'static str> {
    let parts = issuer
        .iter_common_name()
        .chain(issuer.iter_organization())
        .chain(issuer.iter_organizational_unit());
    parts
        .filter_map(|part| Some(part.as_str().ok()?.to_lowercase()))
        .find_map(|part| {
            let (_, product) = INTERCEPTORS.iter().find(|(word, _)| part.contains(word))?;
            Some(*product)
        })
}
