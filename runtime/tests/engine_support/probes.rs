//! What an attacker who runs code in an app would try first, as system calls from inside a container whose user is root
//! and that has a real interpreter: each must be refused, by the missing capability, the system call filter, or a mask.

use super::{Docker, file, hardening::shell, image_files, with_docker};
use flex_model::{ImageRef, Memory};
use flex_runtime::{
    ObservedPhase, Runtime,
    contract::{desired, finish, until},
};
use std::{collections::BTreeMap, path::PathBuf, process::Command};

/// Debian's perl, which is on every Debian machine, and the libraries that it needs.
fn perl_files() -> Vec<PathBuf> {
    let perl = "/usr/bin/perl";
    let out = Command::new("ldd").arg(perl).output().expect("ldd");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let libraries = text.split_whitespace().filter(|w| w.starts_with('/')).map(PathBuf::from);
    [PathBuf::from(perl)].into_iter().chain(libraries).collect()
}

/// The small image with perl in it.
async fn with_perl(docker: &Docker) -> ImageRef {
    let dir = tempfile::tempdir().unwrap();
    let tag = format!("{}-perl", docker.tag);
    let mut image = image_files(dir.path(), &tag, "base");
    let mut tar = tar::Builder::new(Vec::new());
    for path in perl_files() {
        let inside = if path.ends_with("perl") { "bin/perl" } else { path.strip_prefix("/").unwrap().to_str().unwrap() };
        file(&mut tar, inside, 0o755, &std::fs::read(&path).unwrap());
    }
    let bytes = tar.into_inner().unwrap();
    let path = dir.path().join("perl.tar");
    std::fs::write(&path, &bytes).unwrap();
    use sha2::Digest;
    let digest = format!("sha256:{}", hex::encode(sha2::Sha256::digest(&bytes)));
    let mut config: serde_json::Value = serde_json::from_slice(&image.config).unwrap();
    config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(digest.clone().into());
    config["history"].as_array_mut().unwrap().push(serde_json::json!({ "created_by": "perl" }));
    image.config = config.to_string().into();
    image.layers.push((digest, path));
    docker.docker().import(image).await.expect("importing")
}

/// Name, and the call as perl says it: number and arguments. All of x86-64.
#[cfg(target_arch = "x86_64")]
const CALLS: &[(&str, &str)] = &[
    ("mount", "165, $t, $p, $t, 0, 0"),
    ("umount2", "166, $proc, 2"),
    ("pivot_root", "155, $p, $p"),
    ("chroot", "161, $p"),
    ("mknod of a disk", "133, \"$p/disk\", 0060666, 0x800"),
    ("mknod of memory", "133, \"$p/mem\", 0020666, 0x101"),
    ("raw socket", "41, 2, 3, 1"),
    ("packet socket", "41, 17, 3, 768"),
    ("unshare of users", "272, 0x10000000"),
    ("unshare of mounts", "272, 0x20000"),
    ("unshare of networks", "272, 0x40000000"),
    ("setns", "308, 0, 0"),
    ("keyctl", "250, 0, -3, 0, 0, 0"),
    ("add_key", "248, $user, $x, $y, 1, -3"),
    ("request_key", "249, $user, $x, 0, -3"),
    ("bpf", "321, 0, 0, 0"),
    ("userfaultfd", "323, 0"),
    ("perf_event_open", "298, 0, 0, -1, -1, 0"),
    ("open_by_handle_at", "304, 0, 0, 0"),
    ("init_module", "175, 0, 0, $e"),
    ("kexec_load", "246, 0, 0, 0, 0"),
    ("reboot", "169, 0xfee1dead, 672274793, 0x01234567, 0"),
    ("swapon", "167, $p, 0"),
    ("sethostname", "170, $x, 1"),
    ("settimeofday", "164, $time, 0"),
    ("acct", "163, $p"),
    ("syslog", "103, 3, $buf, 10"),
    ("iopl", "172, 3"),
    ("quotactl", "179, 0, 0, 0, 0"),
    ("setuid", "105, 1000"),
    ("setgroups", "116, 1, $group"),
    ("chown", "92, $own, 1000, 1000"),
    ("more open files", "160, 7, $files"),
    ("a better place in the queue", "141, 0, 0, -5"),
    ("real time", "144, 0, 1, $rank"),
    ("a process of another", "62, 999999, 9"),
];

/// Files whose opening for writing would reach the machine.
const FILES: &[&str] = &[
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/hostname",
    "/proc/sysrq-trigger",
    "/proc/sys/vm/drop_caches",
    "/proc/1/oom_score_adj/../../sys/kernel/modprobe",
    "/sys/kernel/uevent_helper",
    "/sys/fs/cgroup/release_agent",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/fs/cgroup/cgroup.procs",
    "/dev/mem",
    "/dev/kmsg",
    "/dev/sda",
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/text",
    "/bin/busybox",
];

#[cfg(target_arch = "x86_64")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_out_is_refused() {
    with_docker("probes", async |docker| {
        let image = with_perl(docker).await;
        let runtime = docker.docker();
        let mut a = desired(&image, "web.1", "sleep 1000");
        a.spec.read_only_root = true;
        a.spec.memory = Memory::from_mib(256);
        runtime.converge(vec![a.clone()]).await.unwrap();
        until(&*runtime, "it runs", |s| s.iter().any(|o| o.phase == ObservedPhase::Running)).await;
        let inside = async |line: &str| {
            let (out, err, _) = finish(runtime.exec(a.instance, shell(line)).await.expect("exec")).await;
            format!("{out}{err}")
        };

        let mut script = "my $p = '/tmp'; my $t = 'tmpfs'; my $buf = ' ' x 64; my $proc = '/proc'; my $user = 'user'; my $x = 'x'; my $y = 'y'; \
                          my $own = '/tmp/probe.pl'; my $e = ''; my $time = pack('qq', 1, 0); \
                          my $group = pack('l', 0); my $files = pack('QQ', 100000, 100000); my $rank = pack('l', 10); ".to_owned();
        for (i, (_, call)) in CALLS.iter().enumerate() {
            script.push_str(&format!("$! = 0; my $r{i} = syscall({call}); print \"call {i} $r{i} \", $!+0, \"\\n\"; "));
        }
        for (i, path) in FILES.iter().enumerate() {
            script.push_str(&format!("print \"file {i} \", (open(my $f{i}, '+<', '{path}') ? 'open' : 'no'), \"\\n\"; "));
        }
        let said = inside(&format!("cat > /tmp/probe.pl <<'EOF'\n{script}\nEOF\nperl /tmp/probe.pl")).await;
        let answers: BTreeMap<String, Vec<&str>> = said
            .lines()
            .filter_map(|l| {
                let mut words = l.split(' ');
                Some((format!("{} {}", words.next()?, words.next()?), words.collect()))
            })
            .collect();
        for (i, (name, _)) in CALLS.iter().enumerate() {
            let answer = answers.get(&format!("call {i}")).unwrap_or_else(|| panic!("no answer for {name}: {said}"));
            // EPERM and EACCES; ENOSYS where the kernel has no such call, ESRCH for a process that cannot be seen.
            let refused = answer[0] == "-1" && matches!(answer[1], "1" | "13" | "38" | "3");
            assert!(refused, "{name} was not refused: {answer:?}");
        }
        for (i, path) in FILES.iter().enumerate() {
            assert_eq!(answers.get(&format!("file {i}")).map(|a| a[0]), Some("no"), "{path} can be written\n{said}");
        }

        // What may be used has an end.
        assert!(inside("dd if=/dev/zero of=/dev/shm/x bs=1M count=100").await.contains("No space"), "/dev/shm");
        assert!(inside("rm -f /dev/shm/x; dd if=/dev/zero of=/tmp/x bs=1M count=150").await.contains("No space"), "/tmp");
        let files = "my @f; while (open(my $f, '<', '/text')) { push @f, $f } print scalar(@f)";
        let open: u32 = inside(&format!("rm -f /tmp/x; perl -e \"{}\"", files.replace('$', "\\$"))).await.trim().parse().unwrap();
        assert!((9_000..10_000).contains(&open), "{open} open files");
        assert!(inside("ulimit -c").await.trim() == "0", "no core files fill its disk");
        // Only its own processes are there to be seen.
        let seen: u32 = inside("ls -d /proc/[0-9]* | wc -l").await.trim().parse().unwrap();
        assert!(seen < 20, "{seen} processes");
        runtime.converge(Vec::new()).await.unwrap();
        until(&*runtime, "it is gone", |s| s.is_empty()).await;
        runtime.remove_image(&format!("{}-perl", docker.tag)).await.unwrap();
    })
    .await;
}
