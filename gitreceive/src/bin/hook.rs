//! The pre-receive hook as a program of its own, for servers that are not flexd (and for the tests).

fn main() -> std::process::ExitCode {
    flex_gitreceive::run_hook()
}
