//! `routecause doctor git`: real git, repositories of the test's own, and what stands between.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::origin::Origin;
use support::web::{self, Web};
use support::{needs, routecause, run};

/// A home, a repository that is served, and a clone-to-be that names it `origin`.
struct Scene {
    folder: tempfile::TempDir,
    web: Web,
}

impl Scene {
    fn new() -> Option<Self> {
        if !needs::has("git") {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let served = folder.path().join("served");
        fs::create_dir(&served).unwrap();
        let web = Web::plain(web::folder(&served));
        let scene = Self { folder, web };
        scene.git(&served, &["init", "-q", "--bare", "a.git"]);
        let work = scene.work();
        fs::create_dir(&work).unwrap();
        scene.git(&work, &["init", "-q"]);
        scene.git(
            &work,
            &[
                "-c",
                "user.name=t",
                "-c",
                "user.email=t@t.test",
                "commit",
                "-q",
                "--allow-empty",
                "-m",
                "one",
            ],
        );
        scene.git(
            &work,
            &["push", "-q", "../served/a.git", "HEAD:refs/heads/main"],
        );
        let bare = served.join("a.git");
        scene.git(&bare, &["symbolic-ref", "HEAD", "refs/heads/main"]);
        scene.git(&bare, &["update-server-info"]);
        scene.git(&work, &["remote", "add", "origin", &scene.url()]);
        Some(scene)
    }

    fn work(&self) -> std::path::PathBuf {
        self.folder.path().join("work")
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/a.git", self.web.port())
    }

    /// Away from the settings of whoever runs the test.
    fn alone(&self, command: &mut Command) {
        command
            .env("HOME", self.folder.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("TERM", "dumb");
        for name in [
            "http_proxy",
            "https_proxy",
            "all_proxy",
            "HTTPS_PROXY",
            "ALL_PROXY",
            "NO_PROXY",
            "no_proxy",
        ] {
            command.env_remove(name);
        }
    }

    #[track_caller]
    fn git(&self, at: &Path, args: &[&str]) {
        let mut command = Command::new("git");
        self.alone(&mut command);
        let (status, stdout, stderr) = run(command.current_dir(at).args(args));
        assert!(status.success(), "git {args:?}: {stdout}{stderr}");
    }

    /// What the doctor says of a remote.
    fn doctor(&self, remote: &[&str], variables: &[(&str, &str)]) -> Value {
        let mut command = routecause();
        self.alone(&mut command);
        command
            .args(["doctor", "git", "--json", "--no-control"])
            .args(remote);
        command
            .current_dir(self.work())
            .envs(variables.iter().copied());
        let (status, stdout, stderr) = run(&mut command);
        let said: Value =
            serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}"));
        assert_eq!(
            status.success(),
            said["verdict"]["id"] == "fine",
            "{said:#}"
        );
        assert!(!stdout.contains("secret"), "{said:#}");
        said
    }
}

#[track_caller]
fn is_about(said: &Value, id: &str, evidence: &str) {
    assert_eq!(said["schema"], "routecause.doctor.git/1");
    assert_eq!(said["verdict"]["id"], id, "{said:#}");
    let told = said["verdict"]["evidence"].to_string();
    assert!(told.contains(evidence), "{evidence} is not in {said:#}");
}

#[test]
fn the_place_that_applies_is_named_whether_it_works_or_not() {
    let Some(scene) = Scene::new() else { return };
    is_about(&scene.doctor(&[], &[]), "fine", "no place names a proxy");
    let gone = format!("http://me:secret@{}", Origin::nowhere());
    let shown = gone.replace("me:secret", "…");
    let of_environment = [("http_proxy", &*gone)];
    is_about(
        &scene.doctor(&[], &of_environment),
        "upstream_down",
        &format!("git goes by http_proxy={shown} (environment)"),
    );
    // A remote of its own mind.
    scene.git(&scene.work(), &["config", "remote.origin.proxy", ""]);
    is_about(
        &scene.doctor(&["origin"], &of_environment),
        "fine",
        "remote.origin.proxy=(nothing: no proxy)",
    );
    // A URL is no remote: the settings of its host count.
    scene.git(
        &scene.work(),
        &[
            "config",
            "--global",
            &format!("http.{}.proxy", scene.url()),
            &gone,
        ],
    );
    is_about(
        &scene.doctor(&[&scene.url()], &[]),
        "upstream_down",
        ".gitconfig)",
    );
    let exempted = [("no_proxy", "127.0.0.1")];
    is_about(
        &scene.doctor(&[&scene.url()], &exempted),
        "fine",
        "NO_PROXY holds 127.0.0.1",
    );
    scene.git(
        &scene.work(),
        &[
            "config",
            "--global",
            "--unset",
            &format!("http.{}.proxy", scene.url()),
        ],
    );
    scene.git(
        &scene.work(),
        &["config", "--global", "http.proxy", "htp://p.test:1"],
    );
    is_about(
        &scene.doctor(&[&scene.url()], &[]),
        "proxy_unusable",
        "htp:// is no proxy's scheme",
    );
}

#[test]
fn what_the_host_refuses_is_no_fault_of_the_way() {
    let Some(scene) = Scene::new() else { return };
    let missing = scene.url().replace("a.git", "b.git");
    is_about(
        &scene.doctor(&[&missing], &[]),
        "repository_missing",
        "git says: ",
    );
    let locked = Web::plain(|_| {
        let mut answer = web::answer(401, "");
        let challenge = "Basic realm=\"x\"".parse().unwrap();
        answer.headers_mut().insert("www-authenticate", challenge);
        answer
    });
    let url = format!("http://127.0.0.1:{}/a.git", locked.port());
    is_about(
        &scene.doctor(&[&url], &[]),
        "git_credentials",
        "could not read Username",
    );
}

#[test]
fn ssh_goes_around_the_proxy_that_https_has() {
    let Some(scene) = Scene::new() else { return };
    if !needs::has("ssh") {
        return;
    }
    let url = format!("ssh://git@127.0.0.1:{}/a.git", Origin::nowhere().port());
    let said = scene.doctor(&[&url], &[("https_proxy", "http://p.test:3128")]);
    is_about(
        &said,
        "goes_around_proxy",
        "for HTTPS there is https_proxy=http://p.test:3128",
    );
    let fix = said["verdict"]["fix"].as_str().unwrap();
    assert!(
        fix.contains("ProxyCommand routecause connect --proxy http://p.test:3128 %h %p"),
        "{fix}"
    );
    // Who asks is said where nobody sees it.
    let said = scene.doctor(&[&url], &[("https_proxy", "http://me:s3cret@p.test:3128")]);
    let fix = said["verdict"]["fix"].as_str().unwrap();
    assert!(
        fix.contains("ProxyCommand routecause connect %h %p, with what https_proxy says in the variable ROUTECAUSE_PROXY"),
        "{fix}"
    );
    assert!(!said.to_string().contains("s3cret"), "{said:#}");
    for proxies in [&[][..], &[("https_proxy", "")]] {
        is_about(
            &scene.doctor(&[&url], proxies),
            "server_down",
            "git goes straight",
        );
    }
    // A port that a proxy refuses by default is the host's own affair here.
    let odd = "ssh://git@127.0.0.1:9/a.git";
    is_about(
        &scene.doctor(&[odd], &[]),
        "server_down",
        "git goes straight",
    );
}
