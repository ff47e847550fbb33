//! The places where Docker takes proxies from: what their texts say.

use serde::Serialize;
use serde_json::Value;

use crate::config::env::{proxy_target, proxy_without_credentials};
use crate::target::{Host, Target};

/// The names by which a place is read, whatever it calls them itself.
const NAMES: [&str; 3] = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];

/// Who reads a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `docker run` and `docker build`: what goes into containers and build steps.
    Client,
    /// The engine, from its file: pulls.
    EngineFile,
    /// The engine, from its unit's environment: pulls.
    EngineUnit,
    /// The engine as it runs, by its own account.
    Engine,
    /// The builder of `BuildKit` that is chosen.
    Builder,
}

impl Kind {
    /// Whether containers are told of what it names.
    pub fn is_for_containers(self) -> bool {
        matches!(self, Self::Client | Self::Builder)
    }

    /// What goes by it, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "containers, builds",
            Self::EngineFile => "pulls, by the file",
            Self::EngineUnit => "pulls, by the unit",
            Self::Engine => "pulls, as it runs",
            Self::Builder => "BuildKit's fetches",
        }
    }
}

/// A place, and what it sets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Place {
    /// Who reads it.
    pub kind: Kind,
    /// Where it is.
    pub source: String,
    /// What it sets.
    pub settings: Vec<Setting>,
}

/// A variable that a place sets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// `HTTP_PROXY`, `HTTPS_PROXY` or `NO_PROXY`.
    pub name: &'static str,
    /// Its value, without user name and password.
    pub value: String,
    /// The proxy that it names.
    #[serde(skip)]
    pub target: Option<Target>,
    /// Why it names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Setting {
    fn new(name: &'static str, value: &str) -> Self {
        if name == "NO_PROXY" {
            return Self {
                name,
                value: value.to_owned(),
                target: None,
                problem: None,
            };
        }
        let target = proxy_target(value);
        Self {
            name,
            value: proxy_without_credentials(value),
            problem: target.as_ref().err().cloned(),
            target: target.ok(),
        }
    }

    /// Whether it leads to whoever reads it.
    pub fn is_loopback(&self) -> bool {
        self.target
            .as_ref()
            .is_some_and(|target| match &target.host {
                Host::Ip(ip) => ip.is_loopback(),
                Host::Name(name) => &**name == "localhost" || name.ends_with(".localhost"),
            })
    }
}

impl Place {
    fn new<'v>(
        kind: Kind,
        source: &str,
        values: impl Fn(&'static str) -> Option<&'v str>,
    ) -> Option<Self> {
        let settings: Vec<_> = NAMES
            .into_iter()
            .filter_map(|name| {
                Some(Setting::new(
                    name,
                    values(name).filter(|value| !value.is_empty())?,
                ))
            })
            .collect();
        (!settings.is_empty()).then(|| Self {
            kind,
            source: source.to_owned(),
            settings,
        })
    }

    /// The proxies that it names, that of https first.
    pub fn proxies(&self) -> impl Iterator<Item = &Setting> {
        self.settings
            .iter()
            .rev()
            .filter(|setting| setting.name != "NO_PROXY")
    }

    /// The value of a variable.
    pub fn value(&self, name: &str) -> Option<&str> {
        let setting = self.settings.iter().find(|setting| setting.name == name)?;
        Some(&setting.value)
    }

    /// Each setting, for people.
    pub fn told(&self) -> impl Iterator<Item = String> {
        self.settings
            .iter()
            .map(|setting| format!("{}: {}={}", self.source, setting.name, setting.value))
    }

    /// `proxies` of the client's `config.json`, for the engine at `host` where it has settings of its own.
    ///
    /// # Errors
    /// The text is no JSON.
    pub fn of_client(source: &str, text: &str, host: &str) -> Result<Option<Self>, String> {
        let config: Value = parse(source, text)?;
        let proxies = config.get("proxies");
        let own = proxies.and_then(|proxies| proxies.get(host).or_else(|| proxies.get("default")));
        Ok(Self::new(Kind::Client, source, |name| {
            let key = match name {
                "HTTP_PROXY" => "httpProxy",
                "HTTPS_PROXY" => "httpsProxy",
                _ => "noProxy",
            };
            own?.get(key)?.as_str()
        }))
    }

    /// `proxies` of `daemon.json`.
    ///
    /// # Errors
    /// The text is no JSON.
    pub fn of_engine_file(source: &str, text: &str) -> Result<Option<Self>, String> {
        let config: Value = parse(source, text)?;
        Ok(Self::new(Kind::EngineFile, source, |name| {
            config
                .get("proxies")?
                .get(name.to_lowercase().replace('_', "-"))?
                .as_str()
        }))
    }

    /// What `systemctl show --property=Environment` says of the engine's unit.
    pub fn of_unit(source: &str, text: &str) -> Option<Self> {
        let words = words(text);
        Self::new(Kind::EngineUnit, source, |name| {
            let lower = name.to_lowercase();
            let value = |wanted: &str| {
                words
                    .iter()
                    .rev()
                    .find_map(|word| word.strip_prefix(wanted)?.strip_prefix('='))
            };
            value(name).or_else(|| value(&lower))
        })
    }

    /// What `docker info` says, as JSON.
    pub fn of_engine(info: &Value) -> Option<Self> {
        Self::new(Kind::Engine, "docker info", |name| {
            let key = match name {
                "HTTP_PROXY" => "HttpProxy",
                "HTTPS_PROXY" => "HttpsProxy",
                _ => "NoProxy",
            };
            info.get(key)?.as_str()
        })
    }

    /// What `docker buildx inspect` says: `Driver Options: env.http_proxy="…"`.
    pub fn of_builder(text: &str) -> Option<Self> {
        let options = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Driver Options:"))?;
        let words = words(options);
        Self::new(Kind::Builder, "docker buildx inspect", |name| {
            let lower = name.to_lowercase();
            let of = |name: &str| {
                let wanted = format!("env.{name}=");
                words.iter().find_map(|word| word.strip_prefix(&wanted))
            };
            of(&lower).or_else(|| of(name))
        })
    }
}

/// A proxy that is left in an image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Baked {
    /// `FILE:LINE`, or the image.
    pub place: String,
    /// What is said there, without credentials.
    pub line: String,
}

/// The `ENV` lines of a Dockerfile that name a proxy.
pub fn baked(source: &str, text: &str) -> Vec<Baked> {
    let mut found = Vec::new();
    let mut is_env = false;
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        let mut rest = line;
        // A line that goes on belongs to the instruction before.
        if !is_env {
            let (word, behind) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            is_env = word.eq_ignore_ascii_case("ENV");
            rest = behind;
        }
        if is_env {
            let words = words(rest.trim_end_matches('\\'));
            // `ENV name value` is the older form.
            let is_old = words.first().is_some_and(|word| !word.contains('='));
            let pairs: Vec<(&str, &str)> = if is_old {
                words
                    .first()
                    .map(|name| (&**name, words.get(1).map_or("", |value| &**value)))
                    .into_iter()
                    .collect()
            } else {
                words
                    .iter()
                    .filter_map(|word| word.split_once('='))
                    .collect()
            };
            for (name, value) in pairs
                .into_iter()
                .filter(|(name, value)| is_proxy(name) && !value.is_empty())
            {
                found.push(Baked {
                    place: format!("{source}:{}", at + 1),
                    line: format!("ENV {name}={}", proxy_without_credentials(value)),
                });
            }
        }
        is_env = is_env && line.ends_with('\\');
    }
    found
}

/// The variables of an image that name a proxy, as `docker image inspect` tells them.
pub fn baked_in_image(image: &str, variables: &[String]) -> Vec<Baked> {
    let pairs = variables
        .iter()
        .filter_map(|variable| variable.split_once('='));
    pairs
        .filter(|(name, value)| is_proxy(name) && !value.is_empty())
        .map(|(name, value)| Baked {
            place: format!("image {image}"),
            line: format!("{name}={}", proxy_without_credentials(value)),
        })
        .collect()
}

fn is_proxy(name: &str) -> bool {
    let lower = name.to_lowercase();
    matches!(&*lower, "http_proxy" | "https_proxy" | "all_proxy")
}

fn parse(source: &str, text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("read {source}: {error}"))
}

/// Words between blanks, where quotes hold blanks together; between `"`, a backslash takes its meaning from what would end or
/// change the text.
pub fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote, mut is_word) = (String::new(), None, false);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, quote) {
            ('\\', Some('"')) => {
                let plain = rest.next_if(|next| "\"\\$`".contains(*next));
                word.push(plain.unwrap_or(c));
            }
            (c, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                is_word = true;
            }
            (c, None) if c.is_whitespace() => {
                if is_word {
                    words.push(std::mem::take(&mut word));
                }
                is_word = false;
            }
            (c, _) => {
                word.push(c);
                is_word = true;
            }
        }
    }
    if is_word {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn says(place: Option<Place>, expected: &str) {
        let told = place.map(|place| {
            let settings: Vec<_> = place
                .settings
                .iter()
                .map(|one| format!("{}={}", one.name, one.value))
                .collect();
            settings.join(" ")
        });
        assert_eq!(told.as_deref().unwrap_or("nothing"), expected);
    }

    #[test]
    fn each_place_is_read_without_its_secrets() {
        let text = r#"{"auths": {"r.test": {"auth": "c2VjcmV0"}}, "proxies": {
            "default": {"httpProxy": "http://me:secret@p:1", "noProxy": "a,b"},
            "tcp://far:2376": {"httpsProxy": "http://q:2"}}}"#;
        let of = |host: &str| Place::of_client("config.json", text, host).unwrap();
        says(
            of("unix:///var/run/docker.sock"),
            "HTTP_PROXY=http://…@p:1 NO_PROXY=a,b",
        );
        says(of("tcp://far:2376"), "HTTPS_PROXY=http://q:2");
        says(
            Place::of_client("config.json", "{}", "").unwrap(),
            "nothing",
        );
        assert!(
            Place::of_client("config.json", "{", "")
                .unwrap_err()
                .starts_with("read config.json: ")
        );
        let file =
            r#"{"proxies": {"http-proxy": "http://p:1", "https-proxy": "", "no-proxy": "x"}}"#;
        says(
            Place::of_engine_file("daemon.json", file).unwrap(),
            "HTTP_PROXY=http://p:1 NO_PROXY=x",
        );
        says(
            Place::of_unit(
                "unit",
                r#"A=b "HTTPS_PROXY=http://p:1" "no_proxy=y, \"\$z" HTTPS_PROXY=http://p:2"#,
            ),
            "HTTPS_PROXY=http://p:2 NO_PROXY=y, \"$z",
        );
        says(Place::of_unit("unit", ""), "nothing");
        let info = serde_json::json!({"HttpProxy": "http://xxxxx:xxxxx@p:1", "HttpsProxy": "", "NoProxy": ""});
        says(Place::of_engine(&info), "HTTP_PROXY=http://…@p:1");
        let builder = "Name: b\nDriver Options:  env.http_proxy=\"http://p:1\" network=\"host\" env.no_proxy=\"a,b\"\n";
        says(
            Place::of_builder(builder),
            "HTTP_PROXY=http://p:1 NO_PROXY=a,b",
        );
        says(
            Place::of_builder("Name: default\nDriver: docker\n"),
            "nothing",
        );
    }

    #[test]
    fn what_stays_in_an_image_is_found() {
        let text = "FROM x\nARG HTTP_PROXY\nENV http_proxy http://me:secret@p:1\nENV A=1 \\\n  HTTPS_PROXY=http://p:2\nRUN echo https_proxy=z\nenv no_proxy=x ALL_PROXY=\n";
        let found: Vec<_> = baked("Dockerfile", text)
            .into_iter()
            .map(|one| format!("{} {}", one.place, one.line))
            .collect();
        assert_eq!(
            found,
            [
                "Dockerfile:3 ENV http_proxy=http://…@p:1",
                "Dockerfile:5 ENV HTTPS_PROXY=http://p:2"
            ]
        );
        let variables = [
            "PATH=/bin".to_owned(),
            "https_proxy=http://a:b@p:3".to_owned(),
        ];
        assert_eq!(
            baked_in_image("app", &variables)[0].line,
            "https_proxy=http://…@p:3"
        );
    }
}
