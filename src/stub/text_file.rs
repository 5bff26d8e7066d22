//! One file of text that is followed.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use super::reload::Source;

/// A file, and how its text is understood.
#[derive(Debug)]
pub struct TextFile<T> {
    path: PathBuf,
    name: &'static str,
    parse: fn(&str) -> Result<T, String>,
}

/// Why a file cannot be used. It holds no secret.
#[derive(Debug, thiserror::Error)]
#[error("the {name} file {}: {why}", path.display())]
pub struct TextFileError {
    name: &'static str,
    path: PathBuf,
    why: String,
}

impl<T> TextFile<T> {
    /// The file at `path`, called `name` in the log ([`Source::name`]). What `parse` says is wrong with it may not hold a secret.
    pub fn new(path: &Path, name: &'static str, parse: fn(&str) -> Result<T, String>) -> Self {
        Self { path: path.to_owned(), name, parse }
    }

    fn failed(&self, why: &dyn Display) -> TextFileError {
        TextFileError { name: self.name, path: self.path.clone(), why: why.to_string() }
    }
}

impl<T: std::fmt::Debug + Send + Sync + 'static> Source for TextFile<T> {
    type Content = String;
    type Value = T;
    type Error = TextFileError;

    fn name(&self) -> &'static str {
        self.name
    }

    fn read(&self) -> Result<String, TextFileError> {
        std::fs::read_to_string(&self.path).map_err(|error| self.failed(&error))
    }

    fn build(&self, text: &String) -> Result<T, TextFileError> {
        (self.parse)(text).map_err(|why| self.failed(&why))
    }
}
