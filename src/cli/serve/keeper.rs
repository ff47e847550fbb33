//! While it serves: signals, wishes, and a policy that is read again.

use std::path::PathBuf;
use std::pin::pin;

use tokio::sync::mpsc;
use tokio::time::interval;

use super::args::ServeArgs;
use super::{MOST_ROUNDS, Signals, load, options, settings, warn_of_faults};
use crate::app::reload::{Answer, Applied, Refused, Standing, Watch, Wish};
use crate::app::{App, Settings, StartError, systemd};
use crate::config::env::Environment;
use crate::config::{self, Diagnostic, Loaded, Secrets, Source, Told};
use crate::observe::board::Board;
use crate::observe::log::Log;

/// Keeps the policy at work up to date with its file.
pub(super) struct Keeper<'a> {
    pub(super) app: &'a App,
    pub(super) source: &'a Source,
    pub(super) args: &'a ServeArgs,
    pub(super) env: &'a Environment,
    pub(super) settings: &'a Settings,
    pub(super) board: Option<&'a Board>,
    pub(super) is_coloured: bool,
    pub(super) standing: &'a Standing,
    pub(super) log: &'a Log,
}

impl Keeper<'_> {
    /// Reloads on SIGHUP and on change, reopens the log on SIGUSR1, and tells systemd that all is well, until the process is
    /// told to end.
    pub(super) async fn keep(
        &self,
        signals: &mut Signals,
        wishes: &mut mpsc::Receiver<Wish>,
        mut files: Vec<PathBuf>,
        watch: notify::Result<Watch>,
    ) {
        let mut watch = usable(watch);
        let mut watchdog = systemd::watchdog().map(interval);
        loop {
            let mut answer = None;
            let is_asked = {
                let changed = async {
                    match &mut watch {
                        Some(watch) => watch.changed().await,
                        None => std::future::pending().await,
                    }
                };
                // Kept over what else happens: it waits until a change is over.
                let mut changed = pin!(changed);
                loop {
                    let beaten = async {
                        match &mut watchdog {
                            Some(watchdog) => watchdog.tick().await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        _ = signals.hangup.recv() => break true,
                        () = &mut changed => break false,
                        _ = signals.reopen.recv() => self.log.reopen(),
                        Some(wish) = wishes.recv() => match wish {
                            Wish::Reload(asker) => {
                                answer = Some(asker);
                                break true;
                            }
                            Wish::Apply { text, instead_of, answer } => {
                                // Whoever asked may have left.
                                let _ = answer.send(self.apply(text, &instead_of));
                            }
                        },
                        _ = beaten => {
                            if self.app.condition().alive().is_ok() {
                                systemd::alive();
                            }
                        }
                        _ = signals.terminate.recv() => return,
                        _ = signals.interrupt.recv() => return,
                    }
                }
            };
            systemd::reloading();
            for round in 0..MOST_ROUNDS {
                // A symlink may lead to other directories now; and watched before it is read, as at the start.
                watch = usable(watch_over(&files));
                let (read, outcome) = self.reload(is_asked && round == 0);
                if let Some(answer) = answer.take() {
                    let _ = answer.send(outcome);
                }
                if read == files {
                    break;
                }
                files = read;
            }
            let state = self.standing.refusal().map_or(
                "",
                |_| ": what stands there now is bad, the old one is at work",
            );
            systemd::ready(&format!("policy {}{state}", self.source));
        }
    }

    /// Reads the policy again, and says from which files, and what became of it. A bad one changes nothing; `is_asked` reloads
    /// even what has not changed.
    fn reload(&self, is_asked: bool) -> (Vec<PathBuf>, Answer) {
        let loaded = match load(self.source, self.args, self.env) {
            Ok(loaded) => loaded,
            Err(report) => {
                let why: Vec<_> = report.diagnostics.iter().map(Diagnostic::told).collect();
                let files = report.files.clone();
                if !is_asked && self.standing.is_refused_for(&why) {
                    // Something beside the policy changed; the policy is as bad as it was.
                    return (files, Err(Refused::Bad(report)));
                }
                self.standing.refuse(why);
                say!("{}", report.render(self.is_coloured));
                tracing::error!(policy = %self.source, "reload failed: the policy is bad, the old one stays at work");
                self.count(false);
                return (files, Err(Refused::Bad(report)));
            }
        };
        let current = self.app.policy();
        // The text may be the same and a secret another.
        let is_same = loaded.policy.hash == current.hash && loaded.policy.routes == current.routes;
        let files = loaded.files.clone();
        if is_same && !is_asked {
            self.standing.accept();
            let hash = current.hash.clone();
            return (files, Ok(Applied { hash, cut: None }));
        }
        for warning in &loaded.warnings {
            say!("{}", warning.render(self.is_coloured));
        }
        let outcome = self.replace(loaded);
        match &outcome {
            Ok(Applied { hash, cut }) => {
                self.standing.accept();
                tracing::info!(policy = %self.source, hash = &**hash, tunnels_cut = cut, "reloaded");
            }
            Err(Refused::Unfit(why)) => {
                let told = Told::of_file(self.source.to_string().into(), why.clone());
                self.standing.refuse(vec![told]);
                tracing::error!(policy = %self.source, "reload refused: {why}");
            }
            Err(Refused::Bad(_) | Refused::Stale) => {}
        }
        (files, outcome)
    }

    /// Sets a text to work in the place of the policy with a hash.
    fn apply(&self, text: String, instead_of: &str) -> Answer {
        if instead_of != "*" && *self.app.policy().hash != *instead_of {
            return Err(Refused::Stale);
        }
        let source = Source::Text {
            name: "policy".to_owned(),
            text,
        };
        let mut options = options(self.args);
        if !self.settings.admin.knows_its_users() {
            options.secrets = Secrets::Withheld;
        }
        let loaded = config::load(&source, self.env, &options).map_err(|report| {
            self.count(false);
            Refused::Bad(report)
        })?;
        let applied = self.replace(loaded)?;
        tracing::info!(
            hash = &*applied.hash,
            tunnels_cut = applied.cut,
            "a policy was applied through the admin API; it holds until {} is read again",
            self.source
        );
        Ok(applied)
    }

    /// Sets a policy to work that was loaded, if it can be done without a restart.
    fn replace(&self, loaded: Loaded) -> Answer {
        let outcome = self.try_replace(loaded);
        self.count(outcome.is_ok());
        outcome
    }

    fn try_replace(&self, loaded: Loaded) -> Answer {
        let settings = settings(self.args, &loaded.server, self.env)
            .map_err(|error| Refused::Unfit(error.to_string()))?;
        let mut listen = settings.listen.clone();
        for (new, old) in listen.iter_mut().zip(&self.settings.listen) {
            // Certificates are renewed.
            if new.tls.is_some() && old.tls.is_some() {
                new.tls.clone_from(&old.tls);
            }
        }
        let fixed = Settings {
            listen,
            allow_from: self.settings.allow_from.clone(),
            users: self.settings.users.clone(),
            ..settings.clone()
        };
        // Whether anyone is asked at all is fixed; who may answer is not.
        let asks_alike = settings.users.is_some() == self.settings.users.is_some();
        if fixed != *self.settings || !asks_alike {
            let why = "under `server` only allow_from, users and certificates can change while the proxy runs; restart it for the rest";
            return Err(Refused::Unfit(why.to_owned()));
        }
        if let Some(address) = self.app.exposed(&settings) {
            let why = StartError::Open { address }.to_string();
            return Err(Refused::Unfit(why));
        }
        let hash = loaded.policy.hash.clone();
        warn_of_faults(&loaded.policy);
        let cut = self.app.replace(loaded.policy, &settings);
        Ok(Applied { hash, cut })
    }

    fn count(&self, is_good: bool) {
        if let Some(board) = self.board {
            board.metrics().reloaded(is_good);
        }
    }
}

/// Watches files, but for those in folders that are not there.
pub(super) fn watch_over(files: &[PathBuf]) -> notify::Result<Watch> {
    let can_be = |file: &&PathBuf| match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.is_dir(),
        Some(_) | None => true,
    };
    let there: Vec<_> = files.iter().filter(can_be).cloned().collect();
    Watch::of(&there)
}

fn usable(watch: notify::Result<Watch>) -> Option<Watch> {
    let complain = |error: &notify::Error| {
        tracing::warn!(%error, "the policy is not watched; send SIGHUP to reload it");
    };
    watch.inspect_err(complain).ok()
}
