//! What is in an archive or a partition, by name: a bounded index in which links are followed, never on this machine.

use std::collections::{HashMap, VecDeque};

use super::names::{parts, show, split};

/// Most links that are followed for one name, as in Linux.
const LINKS: usize = 40;
/// Most bytes of names.
const NAMES: usize = 64 << 20;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Directory,
    /// With its size.
    File(u64),
    /// With what it names.
    Link(Box<[u8]>),
    Other,
}

/// The index.
#[derive(Default)]
pub(super) struct Tree {
    nodes: HashMap<Box<[u8]>, Node>,
    names: usize,
}

impl Tree {
    /// Adds a name; says which directories above it are not in the archive, the uppermost first.
    pub(super) fn add(&mut self, path: &[u8], node: Node) -> Result<Vec<Vec<u8>>, String> {
        let mut missing = Vec::new();
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let above = &path[..at];
            match self.nodes.get(above) {
                Some(Node::Directory) => {}
                None => {
                    self.insert(above, Node::Directory)?;
                    missing.push(above.to_vec());
                }
                Some(Node::Link(_)) => {
                    let words = "make the archive of a directory, in one go";
                    return Err(format!("{} lies below the link {}: {words}", show(path), show(above)));
                }
                Some(_) => return Err(format!("{} lies below {}, which is no directory", show(path), show(above))),
            }
        }
        match self.nodes.get(path) {
            Some(Node::Directory) if node == Node::Directory => Ok(missing),
            Some(_) => Err(format!("{} is in the archive twice", show(path))),
            None => {
                self.insert(path, node)?;
                Ok(missing)
            }
        }
    }

    fn insert(&mut self, path: &[u8], node: Node) -> Result<(), String> {
        self.names += path.len() + if let Node::Link(target) = &node { target.len() } else { 0 };
        if self.names > NAMES {
            return Err(format!("its names have more than {NAMES} bytes in all"));
        }
        self.nodes.insert(path.into(), node);
        Ok(())
    }

    /// How many names there are.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// What a name stands for, itself.
    pub(super) fn get(&self, path: &[u8]) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// Names in a directory.
    pub(super) fn within<'a>(&'a self, directory: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.nodes.keys().map(|path| split(path)).filter(move |(above, _)| *above == directory).map(|(_, name)| name)
    }

    /// Where a name leads when all links on its way are followed; none if there is nothing.
    pub(super) fn resolve(&self, path: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let mut left: VecDeque<Vec<u8>> = parts(path).map(<[u8]>::to_vec).collect();
        let mut at: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(part) = left.pop_front() {
            if part == b".." {
                // above the root is the root
                at.truncate(split(&at).0.len());
                continue;
            }
            let mut next = at.clone();
            if !next.is_empty() {
                next.push(b'/');
            }
            next.extend_from_slice(&part);
            match self.nodes.get(next.as_slice()) {
                Some(Node::Link(target)) => {
                    links += 1;
                    if links > LINKS {
                        return Err(format!("more than {LINKS} links lead from {} on: they are a loop", show(path)));
                    }
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    for part in parts(target).collect::<Vec<_>>().into_iter().rev() {
                        left.push_front(part.to_vec());
                    }
                }
                Some(_) => at = next,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// Where a file is and how long it is, if the name leads to one.
    pub(super) fn file(&self, path: &[u8]) -> Result<Option<(Vec<u8>, u64)>, String> {
        let Some(found) = self.resolve(path)? else { return Ok(None) };
        Ok(match self.get(&found) {
            Some(Node::File(size)) => Some((found, *size)),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(nodes: &[(&str, Node)]) -> Tree {
        let mut tree = Tree::default();
        for (path, node) in nodes {
            tree.add(path.as_bytes(), node.clone()).unwrap();
        }
        tree
    }

    fn link(to: &str) -> Node {
        Node::Link(to.as_bytes().into())
    }

    #[test]
    fn links_are_followed_inside_the_archive() {
        let tree = tree(&[
            ("lib", link("usr/lib")),
            ("usr/lib/kernel/image", Node::File(7)),
            ("vmlinuz", link("boot/vmlinuz")),
            ("boot/vmlinuz", link("../lib/./kernel/current")),
            ("usr/lib/kernel/current", link("/../../lib/kernel/image")),
            ("usr/lib/kernel/gone", link("/etc/passwd")),
        ]);
        let found = |path: &str| tree.file(path.as_bytes()).unwrap();
        for path in ["vmlinuz", "boot/vmlinuz", "usr/lib/kernel/image", "lib/kernel/image"] {
            assert_eq!(found(path), Some((b"usr/lib/kernel/image".to_vec(), 7)), "{path}");
        }
        assert_eq!(found("lib/kernel/gone"), None, "this machine's files are not the archive's");
        assert_eq!(found("lib"), None, "a directory is no file");
    }

    #[test]
    fn loops_end() {
        let tree = tree(&[("a", link("b")), ("b", link("/a")), ("c", link("c/c"))]);
        for path in [&b"a"[..], b"b", b"c/d"] {
            assert!(tree.resolve(path).unwrap_err().contains("loop"));
        }
    }

    #[test]
    fn directories_that_are_not_named_are_told() {
        let mut tree = Tree::default();
        assert_eq!(tree.add(b"a/b/c", Node::Other), Ok(vec![b"a".to_vec(), b"a/b".to_vec()]));
        assert_eq!(tree.add(b"a", Node::Directory), Ok(vec![]));
        assert_eq!(tree.within(b"a").collect::<Vec<_>>(), [b"b"]);
    }
}
