//! Puts the rules where they are missing: with `iptables` and `ip6tables` in whatever form the machine has them (it is
//! the engine's form too), else with `nft`. Looks first; changes nothing where all is as it should be.

use super::rules::{self, Wanted};
use std::{collections::HashMap, process::Stdio, time::Duration};
use tokio::{io::AsyncWriteExt, process::Command};

/// A packet filter that is busy is waited for; one that hangs is not.
const LIMIT: Duration = Duration::from_secs(20);
/// Seconds that iptables waits for another program's change.
const LOCK_SECONDS: &str = "10";

/// Which program sets the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Iptables,
    Nft,
}

/// What was set last, and what it looked like when read back.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    last: HashMap<&'static str, (String, String)>,
}

impl Keeper {
    /// Makes the rules be there. Returns the program that did it.
    ///
    /// # Errors
    /// What was tried and what the program said.
    pub(crate) async fn keep(&mut self, wanted: &Wanted) -> Result<&'static str, String> {
        match tool().await? {
            Tool::Nft => self.keep_nft(wanted).await.map(|()| "nft"),
            Tool::Iptables => {
                self.keep_family(wanted, true).await?;
                if std::path::Path::new("/proc/net/if_inet6").exists() {
                    self.keep_family(wanted, false).await?;
                }
                Ok("iptables")
            }
        }
    }

    async fn keep_family(&mut self, wanted: &Wanted, v4: bool) -> Result<(), String> {
        let (program, restore) = if v4 { ("iptables", "iptables-restore") } else { ("ip6tables", "ip6tables-restore") };
        let text = rules::iptables(wanted, v4, "REJECT");
        let before = listing(program).await?;
        let own = mine(&before, &wanted.tag);
        let jumps = missing_jumps(&before, &wanted.tag);
        if jumps.is_empty() && self.last.get(program).is_some_and(|(t, o)| *t == text && *o == own) {
            return Ok(());
        }
        let args = ["-w", LOCK_SECONDS, "--noflush"];
        if let Err(e) = run(restore, &args, Some(&text)).await {
            // Without the module that answers, silence does.
            let silent = rules::iptables(wanted, v4, "DROP");
            run(restore, &args, Some(&silent)).await.map_err(|_| e)?;
        }
        for [chain, target] in &jumps {
            run(program, &["-w", LOCK_SECONDS, "-I", chain, "1", "-j", target], None).await?;
        }
        let after = listing(program).await?;
        let left = missing_jumps(&after, &wanted.tag);
        if let Some([chain, target]) = left.first() {
            return Err(format!("{program}: the jump from {chain} to {target} was set and is not there"));
        }
        self.last.insert(program, (text, mine(&after, &wanted.tag)));
        Ok(())
    }

    async fn keep_nft(&mut self, wanted: &Wanted) -> Result<(), String> {
        let text = rules::nft(wanted);
        let table = format!("flex_{}", wanted.tag);
        let list = ["list", "table", "inet", table.as_str()];
        if let (Ok(now), Some((t, o))) = (run("nft", &list, None).await, self.last.get("nft"))
            && *t == text
            && *o == now
        {
            return Ok(());
        }
        run("nft", &["-f", "-"], Some(&text)).await?;
        let after = run("nft", &list, None).await?;
        self.last.insert("nft", (text, after));
        Ok(())
    }

    /// Removes all rules of an installation. Where there are none, or no program for them, all is well.
    pub(crate) async fn clear(&mut self, tag: &str) {
        self.last.clear();
        for program in ["iptables", "ip6tables"] {
            let Ok(now) = listing(program).await else { continue };
            let prefix = rules::prefix(tag);
            for line in now.lines().filter(|l| !l.contains(&format!("-A {prefix}"))) {
                let Some((rule, target)) = line.strip_prefix("-A ").and_then(|r| r.split_once(" -j ")) else { continue };
                if target.starts_with(&prefix) {
                    let _ = run(program, &["-w", LOCK_SECONDS, "-D", rule, "-j", target], None).await;
                }
            }
            let chains = || now.lines().filter_map(|l| l.strip_prefix("-N ")).filter(|c| c.starts_with(&prefix));
            // Emptied first: chains that are jumped to cannot go.
            for verb in ["-F", "-X"] {
                for chain in chains() {
                    let _ = run(program, &["-w", LOCK_SECONDS, verb, chain], None).await;
                }
            }
        }
        let _ = run("nft", &["delete", "table", "inet", &format!("flex_{tag}")], None).await;
    }
}

async fn tool() -> Result<Tool, String> {
    match run("iptables", &["--version"], None).await {
        Ok(_) => Ok(Tool::Iptables),
        Err(without) => match run("nft", &["--version"], None).await {
            Ok(_) => Ok(Tool::Nft),
            Err(_) => Err(format!("{without}, and there is no nft")),
        },
    }
}

async fn listing(program: &str) -> Result<String, String> {
    run(program, &["-w", LOCK_SECONDS, "-S"], None).await
}

/// The lines about the installation's chains.
fn mine(listing: &str, tag: &str) -> String {
    let prefix = rules::prefix(tag);
    listing.lines().filter(|l| l.contains(&prefix)).collect::<Vec<_>>().join("\n")
}

/// Chains that must jump to one of the installation's and do not: [chain, target].
///
/// The engine keeps `DOCKER-USER` first in `FORWARD` for such rules, over its own restarts; where it does not, they go
/// into `FORWARD` itself.
fn missing_jumps(listing: &str, tag: &str) -> Vec<[String; 2]> {
    let has = |line: &str| listing.lines().any(|l| l == line);
    let forward = if has("-A FORWARD -j DOCKER-USER") { "DOCKER-USER" } else { "FORWARD" };
    let [host, through] = rules::entries(tag);
    let all = [["INPUT".to_owned(), host], [forward.to_owned(), through]];
    all.into_iter().filter(|[chain, target]| !has(&format!("-A {chain} -j {target}"))).collect()
}

/// Runs a program with its arguments; the error is its own first line.
async fn run(program: &str, args: &[&str], input: Option<&str>) -> Result<String, String> {
    let shown = format!("{program} {}", args.join(" "));
    let mut command = Command::new(program);
    command.args(args).stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| format!("{shown}: {e}"))?;
    let feed = child.stdin.take();
    let work = async {
        if let (Some(mut feed), Some(text)) = (feed, input) {
            // One that ends early says why by itself.
            let _ = feed.write_all(text.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let out = tokio::time::timeout(LIMIT, work).await.map_err(|_| format!("{shown}: no answer within {} s", LIMIT.as_secs()))?;
    let out = out.map_err(|e| format!("{shown}: {e}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    Err(format!("{shown}: {}", said.lines().find(|l| !l.trim().is_empty()).unwrap_or("it failed without a word").trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_go_where_the_engine_keeps_them() {
        let with = "-P INPUT ACCEPT\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n-A INPUT -j flex-c1-in\n";
        assert_eq!(missing_jumps(with, "c1"), [["DOCKER-USER", "flex-c1-fwd"].map(str::to_owned)]);
        // Its chain is there, but a reload of the firewall took the way into it.
        let flushed = "-N DOCKER-USER\n-A DOCKER-USER -j flex-c1-fwd\n";
        assert_eq!(missing_jumps(flushed, "c1")[1], ["FORWARD", "flex-c1-fwd"].map(str::to_owned));
        let all = "-A INPUT -j flex-c1-in\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j flex-c1-fwd\n";
        assert!(missing_jumps(all, "c1").is_empty() && missing_jumps(all, "c").len() == 2);
        assert_eq!(mine("-A INPUT -j flex-c1-in\n-A INPUT -j flex-c2-in", "c1"), "-A INPUT -j flex-c1-in");
    }
}
