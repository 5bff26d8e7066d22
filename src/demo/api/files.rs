//! A container's files: a tree in memory, bounded.

use std::collections::BTreeMap;

use bytes::Bytes;

/// Bytes all files of a container may hold together.
const MAX_BYTES: usize = 256 * 1024 * 1024;
/// Files and folders a container may have.
const MAX_ENTRIES: usize = 10_000;

/// The files of one container. Paths are absolute and normal: `/`, `/tmp/a`.
pub(super) struct FileSystem {
    entries: BTreeMap<String, Entry>,
    bytes: usize,
}

/// What a path leads to.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Content and time.
    pub node: Node,
    /// Time of the last change, in seconds since 1970.
    pub modified: i64,
}

/// A file or a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// A file and its content.
    File(Bytes),
    /// A folder.
    Folder,
}

/// There is no room left.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoSpace;

impl FileSystem {
    /// A few folders and files, as a small image has them.
    pub fn new() -> Self {
        let mut files = Self { entries: BTreeMap::new(), bytes: 0 };
        let now = jiff::Timestamp::now().as_second();
        for folder in ["/", "/etc", "/root", "/tmp", "/www"] {
            files.entries.insert(folder.to_owned(), Entry { node: Node::Folder, modified: now });
        }
        for (path, text) in [("/etc/os-release", "NAME=\"qtunnel sample\"\n"), ("/www/index.html", "hello from web\n")]
        {
            let node = Node::File(Bytes::from_static(text.as_bytes()));
            files.entries.insert(path.to_owned(), Entry { node, modified: now });
        }
        files
    }

    /// What is there.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// Whether there is a folder.
    pub fn is_folder(&self, path: &str) -> bool {
        self.get(path).is_some_and(|entry| entry.node == Node::Folder)
    }

    /// The path itself and everything below it, in order.
    pub fn tree<'a>(&'a self, path: &'a str) -> impl Iterator<Item = (&'a str, &'a Entry)> {
        let prefix = if path == "/" { "/".to_owned() } else { format!("{path}/") };
        let from = self.entries.range(path.to_owned()..);
        let found = from.filter(move |(other, _)| *other == path || other.starts_with(&prefix));
        found.map(|(path, entry)| (path.as_str(), entry))
    }

    /// The names of what lies in a folder.
    pub fn names_in<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a str> {
        let start = if folder == "/" { 1 } else { folder.len() + 1 };
        let names = self.tree(folder).filter_map(move |(path, _)| path.get(start..));
        names.filter(|name| !name.is_empty() && !name.contains('/'))
    }

    /// Puts a file or folder there, and the folders above it.
    pub fn put(&mut self, path: &str, node: Node, modified: i64) -> Result<(), NoSpace> {
        let size = |node: &Node| match node {
            Node::File(bytes) => bytes.len(),
            Node::Folder => 0,
        };
        let before = self.get(path).map_or(0, |entry| size(&entry.node));
        let bytes = self.bytes - before.min(self.bytes) + size(&node);
        if bytes > MAX_BYTES || self.entries.len() + parents(path).count() >= MAX_ENTRIES {
            return Err(NoSpace);
        }
        self.bytes = bytes;
        for parent in parents(path) {
            let folder = || Entry { node: Node::Folder, modified };
            self.entries.entry(parent.to_owned()).or_insert_with(folder);
        }
        self.entries.insert(path.to_owned(), Entry { node, modified });
        Ok(())
    }

    /// Removes a path and everything below it; whether there was something.
    pub fn remove(&mut self, path: &str) -> bool {
        let gone: Vec<String> = self.tree(path).map(|(path, _)| path.to_owned()).collect();
        for path in &gone {
            if let Some(Entry { node: Node::File(bytes), .. }) = self.entries.remove(path) {
                self.bytes -= bytes.len().min(self.bytes);
            }
        }
        !gone.is_empty()
    }
}

/// The absolute, normal form of a path: no `.`, no `..`, no double or trailing slash.
pub(super) fn normalize(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let base = if path.starts_with('/') { "" } else { folder };
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').skip(1).map(|(end, _)| &path[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_brings_its_folders_and_leaves_with_them() {
        let mut files = FileSystem::new();
        files.put("/tmp/a/b.txt", Node::File("x".into()), 1).unwrap();
        assert!(files.is_folder("/tmp/a"));
        assert_eq!(files.names_in("/tmp").collect::<Vec<_>>(), ["a"]);
        assert!(files.remove("/tmp/a"));
        assert!(files.get("/tmp/a/b.txt").is_none());
    }

    #[test]
    fn there_is_a_bound() {
        let mut files = FileSystem::new();
        let big = Node::File(Bytes::from(vec![0; MAX_BYTES]));
        assert_eq!(files.put("/tmp/big", big.clone(), 1), Ok(()));
        assert_eq!(files.put("/tmp/more", big, 1), Err(NoSpace));
    }

    #[test]
    fn paths_are_brought_to_one_form() {
        assert_eq!(normalize("/root", "../tmp/./x//y/"), "/tmp/x/y");
        assert_eq!(normalize("/root", "/../.."), "/");
    }
}
