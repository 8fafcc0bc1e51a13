//! README's tour, word for word: each line of its first long `sh` block, in one shell that stops at the first failure.

use flex_tests::{Server, binary, root};

#[test]
fn the_tour_is_true() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let block = readme.split("```sh\n").skip(1).map(|b| b.split("```").next().unwrap()).find(|b| b.contains("git init"));
    let block = block.expect("README has a tour that begins with git init");
    let server = Server::start();
    let user = server.admin();
    // An installation of its own has ports of its own: the only thing that differs from a reader's machine.
    let tour = block.replace(":8080", &format!(":{}", server.http.port()));
    let bin = binary("flex");
    let path = format!("{}:{}", bin.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let out = user.command("sh", user.home.path(), &["-e", "-x", "-c", &tour]).env("PATH", path).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}");
    assert!(said.contains("Hello from web.1"), "{said}");
}
