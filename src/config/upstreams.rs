//! Upstreams and their secrets: from URLs and references to routes.

mod auth;
pub(super) mod pac;
mod spec;
pub(super) mod tls;

use std::sync::Arc;

use super::chains::{Draft, is_chain, unknown};
use super::check::Context;
use super::decode::{At, Named, clip};
use super::diag::{Findings, Place};
use super::env::{
    ProxyUrl, ProxyUrlError, ProxyVariables, UrlScheme, is_own, parse_proxy_url, proxies,
};
use super::faults::Profiles;
use super::groups;
use super::raw;
use super::yaml::{Node, Value};
use crate::policy::chain::Chain;
use crate::policy::fault::Fault;
use crate::policy::group::Group;
use crate::policy::upstream::Upstream;
use crate::policy::{ByScheme, Route, RouteId, RouteSpec};

/// The ways out of a policy by the names that `via` knows.
#[derive(Debug)]
pub(super) struct Routes {
    /// By [`RouteId`].
    pub(super) list: Vec<Route>,
    /// The faults that may stand in the way of one.
    pub(super) profiles: Profiles,
    names: Vec<(Arc<str>, ByScheme)>,
    /// What else `via` knows by name, and what it is: no member of a group.
    no_members: Vec<(Arc<str>, &'static str)>,
}

/// The route of both kinds of request.
pub(super) const DIRECT: ByScheme = ByScheme {
    http: RouteId::DIRECT,
    connect: RouteId::DIRECT,
};

impl Routes {
    /// Compiles the `upstreams` section.
    pub(super) fn compile(
        raw: Option<&At<Named<raw::upstreams::AnyUpstream>>>,
        profiles: Profiles,
        context: &Context<'_>,
        findings: &mut Findings<'_>,
    ) -> Self {
        let mut this = Self {
            list: vec![Route {
                name: "direct".into(),
                spec: RouteSpec::Direct,
            }],
            profiles,
            names: vec![("direct".into(), DIRECT)],
            no_members: Vec::new(),
        };
        let list = || raw.iter().flat_map(|raw| raw.iter());
        for (name, upstream) in list() {
            check_name(name, "an upstream", findings);
            let raw::upstreams::AnyUpstream::Proxy(upstream) = upstream else {
                continue;
            };
            // An upstream with a mistake keeps its name, so that `via` does not report it again.
            let routes = this
                .add(name, upstream, context, findings)
                .unwrap_or(DIRECT);
            this.names.push((name.value.as_str().into(), routes));
        }
        // Behind the upstreams that their scripts may name.
        for (name, upstream) in list() {
            if let raw::upstreams::AnyUpstream::Pac(raw::upstreams::PacFile {
                pac: Some(file),
                ..
            }) = upstream
            {
                let source = context.scripts.iter().find(|(at, _)| *at == file.place);
                let route = source.map_or(RouteId::DIRECT, |(_, source)| {
                    this.push_route(Route {
                        name: name.value.as_str().into(),
                        spec: RouteSpec::Pac(source.clone()),
                    })
                });
                let both = ByScheme {
                    http: route,
                    connect: route,
                };
                this.names.push((name.value.as_str().into(), both));
            }
        }
        this
    }

    /// Compiles the `groups` section, whose members are upstreams.
    pub(super) fn add_groups(&mut self, raw: &raw::Policy, findings: &mut Findings<'_>) {
        let chains: Vec<&str> = raw
            .chains
            .iter()
            .flat_map(|raw| raw.iter())
            .map(|(name, _)| name.as_str())
            .collect();
        let list = || raw.groups.iter().flat_map(|raw| raw.iter());
        for (name, _) in list() {
            check_name(name, "a group", findings);
            if self.names.iter().any(|(known, _)| **known == *name.value) {
                let message = format!("`{}` is an upstream already", clip(name));
                findings.error(name.place, message);
            }
            self.no_members.push((name.as_str().into(), "group"));
        }
        let chains = chains.into_iter().map(|name| (name.into(), "chain"));
        self.no_members.extend(chains);
        let mut groups = Vec::new();
        for (name, group) in list() {
            let both = groups::group(name, group, self, findings);
            let routes = both.map(|(http, connect)| ByScheme {
                http: self.push_group(name, http),
                connect: self.push_group(name, connect),
            });
            // A group with a mistake keeps its name, so that `via` does not report it again.
            groups.push((name.value.as_str().into(), routes.unwrap_or(DIRECT)));
        }
        self.names.extend(groups);
    }

    fn push_group(&mut self, name: &str, group: Group) -> RouteId {
        self.push_route(Route {
            name: name.into(),
            spec: RouteSpec::Group(group),
        })
    }

    /// What a member of a group names.
    pub(super) fn member(
        &self,
        name: &At<String>,
        findings: &mut Findings<'_>,
    ) -> Option<ByScheme> {
        let found = self.names.iter().find(|(known, _)| **known == *name.value);
        if let Some((_, routes)) = found {
            if self.is_of_pac(*routes) {
                let message = format!("`{}` is a PAC file: a member is none", clip(name));
                findings.error(name.place, message);
                return None;
            }
            return Some(*routes);
        }
        let other = self
            .no_members
            .iter()
            .find(|(known, _)| **known == *name.value);
        if let Some((_, what)) = other {
            let message = format!("`{}` is a {what}: a member is none", clip(name));
            findings
                .error(name.place, message)
                .with_help("write its upstreams here");
            return None;
        }
        let names = self.names.iter().map(|(name, _)| &**name);
        unknown(name, "upstream", names, findings);
        None
    }

    /// Compiles the `chains` section, whose hops are upstreams and groups.
    pub(super) fn add_chains(
        &mut self,
        raw: Option<&At<Named<raw::chains::Chain>>>,
        findings: &mut Findings<'_>,
    ) {
        let mut chains = Vec::new();
        for (name, chain) in raw.iter().flat_map(|raw| raw.iter()) {
            check_name(name, "a chain", findings);
            if self.names.iter().any(|(known, _)| **known == *name.value) {
                let message = format!("`{}` is an upstream or a group already", clip(name));
                findings.error(name.place, message);
            }
            let draft = match chain {
                raw::chains::Chain::Text(text) => {
                    let text = At {
                        value: text.clone(),
                        place: name.place,
                    };
                    Draft::of_text(&text, findings).map(|draft| draft.named(name))
                }
                raw::chains::Chain::Long(long) => Draft::of_long(name, long, findings),
            };
            let routes = draft.and_then(|draft| self.add_chain(draft, findings));
            // A chain with a mistake keeps its name, so that `via` does not report it again.
            chains.push((name.value.as_str().into(), routes.unwrap_or(DIRECT)));
        }
        self.names.extend(chains);
    }

    fn add_chain(&mut self, draft: Draft<'_>, findings: &mut Findings<'_>) -> Option<ByScheme> {
        let name: Arc<str> = draft.name().into();
        let (http, connect) = draft.compile(self, findings)?;
        let mut add = |chain: Chain| {
            self.push_route(Route {
                name: name.clone(),
                spec: RouteSpec::Chain(chain),
            })
        };
        Some(ByScheme {
            http: add(http),
            connect: add(connect),
        })
    }

    /// One route for what is the same, so that both kinds of request share its connections.
    fn push_route(&mut self, route: Route) -> RouteId {
        let same = self.list.iter().position(|known| *known == route);
        RouteId(same.unwrap_or_else(|| {
            self.list.push(route);
            self.list.len() - 1
        }))
    }

    /// Routes with a fault in the way of `hop`, of every hop where `None`; nothing where it strikes none.
    pub(super) fn wrap(
        &mut self,
        routes: ByScheme,
        fault: &Fault,
        hop: Option<ByScheme>,
    ) -> Option<ByScheme> {
        let fault = Arc::new(fault.clone());
        let http = self.wrap_one(routes.http, &fault, hop.map(|hop| hop.http));
        let connect = self.wrap_one(routes.connect, &fault, hop.map(|hop| hop.connect));
        (http.is_some() || connect.is_some()).then_some(ByScheme {
            http: http.unwrap_or(routes.http),
            connect: connect.unwrap_or(routes.connect),
        })
    }

    fn wrap_one(
        &mut self,
        id: RouteId,
        fault: &Arc<Fault>,
        hop: Option<RouteId>,
    ) -> Option<RouteId> {
        let base = self.without_faults(id);
        let route = self.list.get(base.0)?;
        let name = route.name.clone();
        if !fault.fits(&route.spec) {
            // What strikes one hop after another strikes those that it is made of.
            let mut spec = route.spec.clone();
            let parts: Vec<&mut RouteId> = match &mut spec {
                RouteSpec::Chain(chain) => {
                    chain.hops.iter_mut().map(|hop| &mut hop.route).collect()
                }
                RouteSpec::Group(group) => {
                    let members = group.members.iter_mut();
                    members.map(|member| &mut member.route).collect()
                }
                RouteSpec::Direct
                | RouteSpec::Upstream(_)
                | RouteSpec::Pac(_)
                | RouteSpec::Faulty { .. } => Vec::new(),
            };
            // Where the group itself is named, all of its members are meant.
            let hop = hop.filter(|hop| *hop != base);
            let mut is_struck = false;
            for part in parts {
                if let Some(wrapped) = self.wrap_one(*part, fault, hop) {
                    *part = wrapped;
                    is_struck = true;
                }
            }
            // Its own faults stay in front of it.
            let whole = is_struck.then(|| self.push_route(Route { name, spec }))?;
            return Some(self.rewrap(id, whole));
        }
        if hop.is_some_and(|hop| hop != base) {
            return None;
        }
        let fault = fault.clone();
        let spec = RouteSpec::Faulty { inner: id, fault };
        Some(self.push_route(Route { name, spec }))
    }

    /// The faults of `id` in front of another route.
    fn rewrap(&mut self, id: RouteId, base: RouteId) -> RouteId {
        let Some(Route {
            name,
            spec: RouteSpec::Faulty { inner, fault },
        }) = self.list.get(id.0).cloned()
        else {
            return base;
        };
        let inner = self.rewrap(inner, base);
        let spec = RouteSpec::Faulty { inner, fault };
        self.push_route(Route { name, spec })
    }

    fn without_faults(&self, id: RouteId) -> RouteId {
        match self.list.get(id.0).map(|route| &route.spec) {
            Some(RouteSpec::Faulty { inner, .. }) => self.without_faults(*inner),
            _ => id,
        }
    }

    /// What `via` names, or the chain that it is.
    pub(super) fn find(
        &mut self,
        via: &At<String>,
        findings: &mut Findings<'_>,
    ) -> Option<ByScheme> {
        let name = via.as_str();
        let found = self.names.iter().find(|(known, _)| **known == *name);
        if let Some((_, routes)) = found {
            return Some(*routes);
        }
        if is_chain(name) {
            let draft = Draft::of_text(via, findings)?;
            return self.add_chain(draft, findings);
        }
        let names = self.names.iter().map(|(name, _)| &**name);
        unknown(via, "route", names, findings);
        None
    }

    /// What a hop of a chain names.
    pub(super) fn hop(&self, name: &At<String>, findings: &mut Findings<'_>) -> Option<ByScheme> {
        let found = self.names.iter().find(|(known, _)| **known == *name.value);
        if let Some((_, routes)) = found {
            if self.is_of_chain(*routes) {
                let message = format!("`{}` is a chain: a hop is none", clip(name));
                findings
                    .error(name.place, message)
                    .with_help("write its hops here");
                return None;
            }
            if self.is_of_pac(*routes) {
                let message = format!("`{}` is a PAC file: a hop is none", clip(name));
                let help = "its script names one way after another itself";
                findings.error(name.place, message).with_help(help);
                return None;
            }
            return Some(*routes);
        }
        let names = self.names.iter().map(|(name, _)| &**name);
        unknown(name, "hop", names, findings);
        None
    }

    fn is_of_chain(&self, routes: ByScheme) -> bool {
        let route = self.list.get(routes.connect.0);
        route.is_some_and(|route| matches!(route.spec, RouteSpec::Chain(_)))
    }

    fn is_of_pac(&self, routes: ByScheme) -> bool {
        let route = self.list.get(routes.connect.0);
        route.is_some_and(|route| matches!(route.spec, RouteSpec::Pac(_)))
    }

    fn add(
        &mut self,
        name: &At<String>,
        raw: &raw::upstreams::Upstream,
        context: &Context<'_>,
        findings: &mut Findings<'_>,
    ) -> Option<ByScheme> {
        let url = raw.url.as_ref()?;
        if url.as_str() == "env" {
            for (key, place) in [
                ("auth", place_of(raw.auth.as_ref())),
                ("tls", place_of(raw.tls.as_ref())),
                ("http", place_of(raw.http.as_ref())),
                ("send", place_of(raw.send.as_ref())),
            ] {
                let Some(place) = place else { continue };
                let message = if key == "auth" {
                    "an upstream from the environment takes its credentials from there, not from `auth`".to_owned()
                } else {
                    format!(
                        "`{key}` needs an upstream with a URL of its own, not one from the environment"
                    )
                };
                findings.error(place, message);
            }
            return Some(self.add_environment(name, raw, url.place, context, findings));
        }
        if !url.contains("://") {
            let message = format!(
                "`{}` is no URL",
                clip(url.rsplit('@').next().unwrap_or_default())
            );
            let help = "write `http://host:port`, or `env` for the proxy variables";
            findings.error(url.place, message).with_help(help);
            return None;
        }
        let proxy = match parse_proxy_url(url) {
            Ok(ProxyUrl {
                userinfo: Some(_), ..
            })
            | Err(ProxyUrlError::Userinfo) => {
                let message = "credentials do not stand in a policy";
                let help =
                    "write `auth: {username: {env: NAME}, password: {env: NAME}}` beside `url`";
                findings.error(url.place, message).with_help(help);
                None
            }
            Ok(proxy) => Some(proxy),
            Err(error) => {
                findings.error(url.place, error.to_string());
                None
            }
        };
        // Without a URL that can be read nothing is known of what fits it; the secrets are looked at all the same.
        let scheme = proxy.as_ref().map_or(UrlScheme::Http, |proxy| proxy.scheme);
        let auth = raw.auth.as_ref().and_then(|at| {
            if scheme.is_socks() {
                auth::of_socks(at, context, findings)
            } else {
                auth::of_http(at, context, findings)
            }
        });
        let proxy = proxy?;
        if context.own.iter().any(|own| is_own(&proxy.target, *own)) {
            let message = format!(
                "`{}` leads back to this proxy: {} is where it listens, and every request by it is refused (proxy.loop)",
                clip(name),
                proxy.target
            );
            let help = "write where the other proxy listens, or listen elsewhere (`server.listen`, `--listen`)";
            findings.warn(url.place, message).with_help(help);
        }
        let spec = spec::compile(&proxy, raw, auth, context, findings);
        let id = self.push(name, spec);
        Some(ByScheme {
            http: id,
            connect: id,
        })
    }

    fn add_environment(
        &mut self,
        name: &At<String>,
        raw: &raw::upstreams::Upstream,
        place: Place,
        context: &Context<'_>,
        findings: &mut Findings<'_>,
    ) -> ByScheme {
        let ProxyVariables {
            http,
            connect,
            errors,
            warnings,
        } = proxies(context.environment, context.own);
        for error in errors {
            findings.error(place, error);
        }
        for warning in warnings {
            findings.warn(place, warning);
        }
        let of_url = raw::upstreams::Upstream {
            forward: raw.forward.clone(),
            proxy_protocol: raw.proxy_protocol.clone(),
            limits: raw.limits.clone(),
            ..raw::upstreams::Upstream::default()
        };
        let mut add = |proxy: Option<ProxyUrl>| match proxy {
            None => RouteId::DIRECT,
            Some(proxy) => {
                let auth = proxy.userinfo.as_ref().map(auth::of_url);
                let spec = spec::compile(&proxy, &of_url, auth, context, findings);
                self.push(name, spec)
            }
        };
        ByScheme {
            http: add(http),
            connect: add(connect),
        }
    }

    /// One proxy is one route, so that both kinds of request share its connections.
    fn push(&mut self, name: &str, spec: Upstream) -> RouteId {
        self.push_route(Route {
            name: name.into(),
            spec: RouteSpec::Upstream(Arc::new(spec)),
        })
    }
}

/// Checks the name of a route.
pub(super) fn check_name(name: &At<String>, what: &str, findings: &mut Findings<'_>) {
    let is_word = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-');
    if matches!(name.as_str(), "direct" | "off") {
        findings.error(
            name.place,
            format!(
                "`{}` is no name for {what}: it is a route of its own",
                name.value
            ),
        );
    } else if name.is_empty() || name.len() > 64 || !name.chars().all(is_word) {
        let message = format!("{what}'s name is made of a-z, 0-9, _ and -");
        findings.error(name.place, message);
    }
}

fn place_of<T>(at: Option<&At<T>>) -> Option<Place> {
    at.map(|at| at.place)
}

/// Keeps what looks like a secret written into the file by mistake out of every message: all
/// scalars below `auth` and below keys such as `password`, but for the names of variables and files.
pub(super) fn conceal_secrets(node: &Node, findings: &mut Findings<'_>) {
    conceal(node, false, findings);
}

fn conceal(node: &Node, is_secret: bool, findings: &mut Findings<'_>) {
    match &node.value {
        Value::Scalar { text, .. } => {
            if is_secret || text.contains(':') && text.contains('@') {
                findings.conceal(node.place);
            }
        }
        Value::List(items) => items
            .iter()
            .for_each(|item| conceal(item, is_secret, findings)),
        Value::Map(entries) => {
            for (key, value) in entries {
                let name = key.text.to_lowercase();
                let is_reference = is_secret
                    && matches!(
                        (&value.value, name.as_str()),
                        (
                            Value::Scalar { .. },
                            "env" | "file" | "spn" | "preemptive" | "schemes"
                        ) | (Value::List(_), "schemes")
                    );
                // What has a colon is no file of users, but one of them.
                let names_users = name == "users"
                    && matches!(&value.value, Value::Scalar { text, .. } if !text.contains(':'));
                let names_secret = ["auth", "pass", "secret", "token", "credential"]
                    .iter()
                    .any(|word| name.contains(word));
                let is_secret = !is_reference && !names_users && (is_secret || names_secret);
                conceal(value, is_secret, findings);
            }
        }
    }
}
