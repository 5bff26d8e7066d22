//! The dashboard: a page that asks `/api/v1/` and needs nothing from elsewhere. Its files are part of the program.

/// A file of the dashboard.
#[derive(Debug, Clone, Copy)]
pub struct File {
    path: &'static str,
    /// Its media type.
    pub kind: &'static str,
    /// What is in it.
    pub bytes: &'static [u8],
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! files {
    ($($path:literal, $kind:expr, $source:literal;)*) => {
        &[$(File { path: $path, kind: $kind, bytes: include_bytes!(concat!("dashboard/", $source)) }),*]
    };
}

const FILES: &[File] = files! {
    "/", "text/html; charset=utf-8", "index.html";
    "/dashboard/style.css", "text/css; charset=utf-8", "style.css";
    "/dashboard/icon.svg", "image/svg+xml", "icon.svg";
    "/dashboard/theme.js", SCRIPT, "theme.js";
    "/dashboard/main.js", SCRIPT, "main.js";
    "/dashboard/standing.js", SCRIPT, "standing.js";
    "/dashboard/data.js", SCRIPT, "data.js";
    "/dashboard/views.js", SCRIPT, "views.js";
    "/dashboard/table.js", SCRIPT, "table.js";
    "/dashboard/chart.js", SCRIPT, "chart.js";
    "/dashboard/format.js", SCRIPT, "format.js";
    "/dashboard/dom.js", SCRIPT, "dom.js";
};

/// The file at `path`.
pub fn file(path: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.path == path)
}
