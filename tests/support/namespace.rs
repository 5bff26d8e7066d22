//! Two network namespaces with two links between them. Only root can make them.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The public side has 10.79.0.1, whatever link leads there. The private side has an address on each of two links,
/// `first` (10.77.0.2) and `second` (10.78.0.2), and its default route over the first.
pub struct TwoLinks {
    public: Namespace,
    private: Namespace,
}

impl TwoLinks {
    /// Makes them; `None`, with a message, where that is not permitted.
    pub fn make() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can make network namespaces");
            return None;
        }
        let links = Self { public: Namespace::make("public"), private: Namespace::make("private") };
        let Self { public, private } = &links;
        for (link, subnet) in [("first", "10.77.0"), ("second", "10.78.0")] {
            public.ip(&format!("link add {link} type veth peer name {link} netns {}", private.name));
            public.ip(&format!("addr add {subnet}.1/24 dev {link}"));
            private.ip(&format!("addr add {subnet}.2/24 dev {link}"));
            public.ip(&format!("link set {link} up"));
            private.ip(&format!("link set {link} up"));
        }
        public.ip("addr add 10.79.0.1/32 dev lo");
        private.ip("route add default via 10.77.0.1");
        Some(links)
    }

    /// The public side.
    pub fn public(&self) -> &Namespace {
        &self.public
    }

    /// The private side.
    pub fn private(&self) -> &Namespace {
        &self.private
    }
}

/// A network namespace. It goes when it is dropped, and with it every link in it.
pub struct Namespace {
    name: String,
}

impl Namespace {
    fn make(side: &str) -> Self {
        let name = format!("qtunnel-{}-{side}", std::process::id());
        run(&format!("netns add {name}"));
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// `ip` with these arguments.
    pub fn ip(&self, arguments: &str) {
        run(&format!("-n {} {arguments}", self.name));
    }

    /// Several commands at once, with no more time between them than the kernel takes.
    pub fn ip_batch(&self, commands: &[&str]) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), commands.join("\n")).unwrap();
        run(&format!("-n {} -batch {}", self.name, file.path().display()));
    }

    /// Runs `action` on a thread in the namespace. The processes and threads that it starts stay there.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let enter = self.enter();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter();
                action()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// What moves the thread that calls it into the namespace.
    pub fn enter(&self) -> impl FnOnce() + Send + 'static {
        let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
        move || move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip(8) is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
