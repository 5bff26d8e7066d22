//! What is shown, and what the keys do to it.

use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::widgets::TableState;

use super::rows::{Column, Row, View};
use crate::stub::activity::{Incident, Series};
use crate::stub::admin::{RequestList, StubStatus};

/// How far PgUp and PgDn go.
const PAGE: usize = 10;

/// The longest filter, in characters.
const MAX_FILTER: usize = 100;

/// What the stub says.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Clusters and agents.
    pub status: StubStatus,
    /// Open requests.
    pub requests: RequestList,
    /// Recent denials and errors.
    pub incidents: Vec<Incident>,
    /// The last minutes.
    pub series: Series,
}

/// What is shown.
#[derive(Debug)]
pub struct App {
    /// What the stub said last.
    pub snapshot: Snapshot,
    /// Why it did not answer since.
    pub error: Option<String>,
    /// Which table is shown.
    pub view: View,
    /// Words that a row has to have.
    pub filter: String,
    /// Whether keys go to the filter.
    pub typing: bool,
    /// Which row is selected.
    pub selection: TableState,
    sorting: [Sorting; View::ALL.len()],
}

/// By what a table is sorted.
#[derive(Debug, Clone, Copy)]
pub struct Sorting {
    /// The number of the column.
    pub column: usize,
    /// Whether the largest comes first.
    pub descending: bool,
}

/// What comes after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It goes on.
    Show,
    /// The user has seen enough.
    Quit,
}

impl App {
    /// Shows this first.
    pub fn new(snapshot: Snapshot) -> Self {
        Self {
            snapshot,
            error: None,
            view: View::Clusters,
            filter: String::new(),
            typing: false,
            selection: TableState::default().with_selected(0),
            sorting: View::ALL.map(View::sorting),
        }
    }

    /// Shows what the stub says now, or that it does not answer.
    pub fn heard(&mut self, news: Result<Snapshot, String>) {
        match news {
            Ok(snapshot) => (self.snapshot, self.error) = (snapshot, None),
            Err(error) => self.error = Some(error),
        }
    }

    /// Does what a key says.
    pub fn handle(&mut self, event: &Event) -> Next {
        let Event::Key(key) = event else { return Next::Show };
        if key.kind == KeyEventKind::Release {
            return Next::Show;
        }
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return Next::Quit;
        }
        if self.typing {
            self.type_filter(key);
            return Next::Show;
        }
        match key.code {
            KeyCode::Char('q') => return Next::Quit,
            KeyCode::Tab | KeyCode::Right => self.turn(1),
            KeyCode::BackTab | KeyCode::Left => self.turn(View::ALL.len() - 1),
            KeyCode::Char(digit @ '1'..='9') => {
                let number = digit.to_digit(10).unwrap_or(1) as usize - 1;
                self.go_to(View::ALL.get(number).copied().unwrap_or(self.view));
            }
            KeyCode::Down | KeyCode::Char('j') => self.selection.select_next(),
            KeyCode::Up | KeyCode::Char('k') => self.selection.select_previous(),
            KeyCode::PageDown => self.selection.scroll_down_by(PAGE as u16),
            KeyCode::PageUp => self.selection.scroll_up_by(PAGE as u16),
            KeyCode::Home => self.selection.select_first(),
            KeyCode::End => self.selection.select_last(),
            KeyCode::Char('s') => self.sort_by_column(1),
            KeyCode::Char('S') => self.sort_by_column(self.view.columns().len() - 1),
            KeyCode::Char('r') => {
                let sorting = self.sorting_mut();
                sorting.descending = !sorting.descending;
            }
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Esc => self.filter.clear(),
            _ => {}
        }
        Next::Show
    }

    /// By what the shown table is sorted.
    pub fn sorting(&self) -> Sorting {
        self.sorting.get(self.view as usize).copied().unwrap_or_else(|| self.view.sorting())
    }

    /// The rows of the shown table: filtered and sorted.
    pub fn rows(&self) -> Vec<Row> {
        let words: Vec<String> = self.filter.split_whitespace().map(str::to_lowercase).collect();
        let mut rows = self.view.rows(&self.snapshot);
        rows.retain(|row| words.iter().all(|word| row.contains(word)));
        let Sorting { column, descending } = self.sorting();
        rows.sort_by(|a, b| if descending { b.compare(a, column) } else { a.compare(b, column) });
        rows
    }

    fn type_filter(&mut self, key: &KeyEvent) {
        match key.code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(letter) if self.filter.chars().count() < MAX_FILTER => self.filter.push(letter),
            _ => {}
        }
    }

    fn turn(&mut self, steps: usize) {
        let next = (self.view as usize + steps) % View::ALL.len();
        self.go_to(View::ALL.get(next).copied().unwrap_or(self.view));
    }

    fn go_to(&mut self, view: View) {
        self.view = view;
        self.selection.select_first();
    }

    fn sort_by_column(&mut self, steps: usize) {
        let columns: &[Column] = self.view.columns();
        let sorting = self.sorting_mut();
        sorting.column = (sorting.column + steps) % columns.len();
        sorting.descending = columns.get(sorting.column).is_some_and(|column| column.numeric);
    }

    fn sorting_mut(&mut self) -> &mut Sorting {
        // A view is its own position among all of them.
        &mut self.sorting[self.view as usize]
    }
}
