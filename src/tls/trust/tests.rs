use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, PKCS_RSA_SHA256, RsaKeySize, date_time_ymd,
};

use super::*;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn of_ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

pub(in crate::tls) fn ca(name: &str) -> Ca {
    Ca::self_signed(of_ca(name), KeyPair::generate().unwrap()).unwrap()
}

fn below(name: &str, ca: &Ca) -> Ca {
    Ca::signed_by(of_ca(name), KeyPair::generate().unwrap(), ca).unwrap()
}

fn of_server() -> CertificateParams {
    let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, "the server");
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2027, 1, 1);
    params
}

fn signed(params: &CertificateParams, ca: &Ca) -> CertificateDer<'static> {
    let key = KeyPair::generate().unwrap();
    params.signed_by(&key, ca).unwrap().der().clone()
}

fn self_signed(params: &CertificateParams) -> CertificateDer<'static> {
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().clone()
}

/// Judges for `a.example` in the middle of 2026.
fn judge(roots: &Roots, chain: &[CertificateDer<'_>]) -> Judgement {
    let name = Host::parse("a.example").unwrap();
    roots.judge(chain, &name, "2026-07-01T00:00:00Z".parse().unwrap())
}

#[track_caller]
fn check(roots: &Roots, chain: &[CertificateDer<'_>], expected: Verdict) -> Judgement {
    let judgement = judge(roots, chain);
    assert_eq!(judgement.verdict, expected, "{judgement:?}");
    judgement
}

#[test]
fn each_verdict_is_told_from_the_others() {
    let trusted = ca("a root");
    let roots = Roots::of([trusted.der().clone()]);
    let with = |change: fn(&mut CertificateParams)| {
        let mut params = of_server();
        change(&mut params);
        [signed(&params, &trusted)]
    };
    let good = check(&roots, &with(|_| {}), Verdict::Valid);
    assert!(good.is_trusted);
    let late = with(|p| p.not_after = date_time_ymd(2026, 6, 30));
    check(&roots, &late, Verdict::Expired);
    let early = with(|p| p.not_before = date_time_ymd(2026, 7, 2));
    check(&roots, &early, Verdict::NotYetValid);
    let other = with(|p| *p = CertificateParams::new(vec!["b.example".to_owned()]).unwrap());
    check(&roots, &other, Verdict::NameMismatch);
    let for_clients = with(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    check(&roots, &for_clients, Verdict::WrongPurpose);
    let of_a_ca = with(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    check(&roots, &of_a_ca, Verdict::CaAsLeaf);
    let unknown = [signed(&of_server(), &ca("nobody"))];
    check(&roots, &unknown, Verdict::UnknownIssuer);
    check(&roots, &[self_signed(&of_server())], Verdict::SelfSigned);
    check(&roots, &[], Verdict::Malformed);
    check(
        &roots,
        &[b"no certificate".to_vec().into()],
        Verdict::Malformed,
    );
}

#[test]
fn a_self_signed_ca_is_self_signed_until_it_is_a_root() {
    let mut params = of_server();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let leaf = self_signed(&params);
    check(
        &Roots::of([]),
        std::slice::from_ref(&leaf),
        Verdict::SelfSigned,
    );
    let roots = Roots::of([leaf.clone()]);
    check(&roots, &[leaf], Verdict::CaAsLeaf);
}

#[test]
fn a_name_that_only_looks_self_signed_is_an_unknown_issuer() {
    let namesake = ca("the server");
    let mut params = of_server();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "the server");
    let leaf = signed(&params, &namesake);
    check(&Roots::of([]), &[leaf], Verdict::UnknownIssuer);
}

#[test]
fn an_intermediate_that_was_seen_elsewhere_completes_a_chain() {
    let root = ca("a root");
    let (upper, roots) = (below("upper", &root), Roots::of([root.der().clone()]));
    let lower = below("lower", &upper);
    let leaf = signed(&of_server(), &lower);
    check(&roots, std::slice::from_ref(&leaf), Verdict::UnknownIssuer);
    let whole = [leaf.clone(), lower.der().clone(), upper.der().clone()];
    check(&roots, &whole, Verdict::Valid);
    let alone = check(&roots, &[leaf], Verdict::IncompleteChain);
    assert_eq!((alone.is_trusted, alone.sent), (false, 1));
}

#[test]
fn an_intermediate_out_of_its_time_is_told_from_the_servers_own() {
    let root = ca("a root");
    let mut params = of_ca("past");
    params.not_after = date_time_ymd(2026, 2, 1);
    let past = Ca::signed_by(params, KeyPair::generate().unwrap(), &root).unwrap();
    let chain = [signed(&of_server(), &past), past.der().clone()];
    let roots = Roots::of([root.der().clone()]);
    assert!(check(&roots, &chain, Verdict::Expired).is_above);
    let mut params = of_server();
    params.not_after = date_time_ymd(2026, 2, 1);
    assert!(!check(&roots, &[signed(&params, &root)], Verdict::Expired).is_above);
}

#[test]
fn a_product_that_opens_tls_is_named_whether_or_not_its_root_is_installed() {
    let product = ca("Zscaler Intermediate Root CA");
    let leaf = signed(&of_server(), &product);
    for (roots, is_trusted) in [
        (Roots::of([]), false),
        (Roots::of([product.der().clone()]), true),
    ] {
        let judgement = check(
            &roots,
            std::slice::from_ref(&leaf),
            Verdict::KnownInterceptor,
        );
        assert_eq!(judgement.is_trusted, is_trusted);
        assert_eq!(judgement.interceptor, Some("Zscaler"));
    }
}

#[test]
fn a_town_is_no_product() {
    let mut params = of_ca("somebody");
    params
        .distinguished_name
        .push(DnType::LocalityName, "Palo Alto Networks");
    let ca = Ca::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    check(
        &Roots::of([]),
        &[signed(&of_server(), &ca)],
        Verdict::UnknownIssuer,
    );
}

#[test]
fn sha1_is_weak() {
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let ca = Ca::self_signed(of_ca("old"), key).unwrap();
    let mut leaf = signed(&of_server(), &ca).to_vec();
    // The numbers of sha256WithRSAEncryption and sha1WithRSAEncryption differ in their last byte.
    let sha256 = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
    let places: Vec<_> = (0..leaf.len())
        .filter(|at| leaf[*at..].starts_with(&sha256))
        .collect();
    assert_eq!(places.len(), 2);
    for at in places {
        leaf[at + 8] = 5;
    }
    let roots = Roots::of([ca.der().clone()]);
    check(&roots, &[leaf.into()], Verdict::Weak);
}

#[test]
fn a_broken_signature_is_malformed() {
    let ca = ca("a root");
    let mut leaf = signed(&of_server(), &ca).to_vec();
    *leaf.last_mut().unwrap() ^= 1;
    let roots = Roots::of([ca.der().clone()]);
    check(&roots, &[leaf.into()], Verdict::Malformed);
}

#[test]
fn the_facts_are_those_of_the_servers_own_certificate() {
    let mut params = of_server();
    params
        .subject_alt_names
        .push(rcgen::SanType::IpAddress("192.0.2.7".parse().unwrap()));
    let leaf = signed(&params, &ca("nobody\u{1b}[2J"));
    let judgement = judge(&Roots::of([]), &[leaf]);
    assert!(judgement.subject.contains("CN=the server"), "{judgement:?}");
    assert!(judgement.issuer.contains("CN=nobody"), "{judgement:?}");
    assert!(!judgement.issuer.contains('\u{1b}'), "{judgement:?}");
    let moment = |text: &str| Some(text.parse().unwrap());
    assert_eq!(judgement.not_before, moment("2026-01-01T00:00:00Z"));
    assert_eq!(judgement.not_after, moment("2027-01-01T00:00:00Z"));
    assert_eq!(judgement.names, ["a.example", "192.0.2.7"]);
    assert_eq!(judgement.sha256.len(), 64);
}
