//! How the demo looks: colours, boxes and lines that are redrawn on a terminal; plain lines, each once, in a pipe.
//!
//! Not here: what is told (`demo`). Whoever reads may go away: nothing here fails.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// The widest that boxes and progress lines get, in characters.
const WIDEST: usize = 100;
const SPINNER: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Bold,
    Dim,
    Green,
    Red,
    Cyan,
}

/// Standard output.
#[derive(Debug)]
pub(crate) struct Screen {
    terminal: bool,
    colour: bool,
    width: usize,
    steps: usize,
    step: usize,
    /// Lines of the panel that stands above the cursor.
    drawn: usize,
    /// A progress line is on the cursor's line.
    progress: bool,
    turns: usize,
}

impl Screen {
    /// For a story of so many steps.
    pub(crate) fn new(steps: usize) -> Self {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let terminal = io::stdout().is_terminal() && !dumb;
        let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        Self {
            terminal,
            colour: terminal && !is_set("NO_COLOR"),
            width: columns.unwrap_or(WIDEST).clamp(40, WIDEST),
            steps,
            step: 0,
            drawn: 0,
            progress: false,
            turns: 0,
        }
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// The first lines.
    pub(crate) fn title(&mut self, title: &str, lines: &[&str]) {
        if !self.terminal {
            self.line(title);
            lines.iter().for_each(|line| self.line(line));
            return;
        }
        let styled: Vec<(Style, String)> = lines.iter().map(|line| (Style::Plain, (*line).to_owned())).collect();
        self.line("");
        self.panel(title, &styled);
        self.leave_panel();
    }

    /// The next step begins.
    pub(crate) fn step(&mut self, title: &str) {
        self.step += 1;
        self.line("");
        let number = format!("{}/{}", self.step, self.steps);
        if self.terminal {
            let rule = "─".repeat(self.width.saturating_sub(title.chars().count() + number.len() + 8));
            let line = format!(
                "{} {} {}",
                self.paint(Style::Dim, &format!("── {number}")),
                self.paint(Style::Bold, title),
                self.paint(Style::Dim, &rule)
            );
            self.line(&line);
        } else {
            self.line(&format!("== {number} {title}"));
        }
    }

    /// What is being done; on a terminal only, until the next line.
    pub(crate) fn progress(&mut self, text: &str) {
        if !self.terminal {
            return;
        }
        self.turns += 1;
        let mark = self.paint(Style::Cyan, &SPINNER[self.turns % SPINNER.len()].to_string());
        let text = fitted(text, self.width - 6);
        self.write(&format!("\r\x1b[2K  {mark} {text}"));
        self.progress = true;
    }

    /// Something that is done, and how long it took.
    pub(crate) fn done(&mut self, text: &str, took: Duration) {
        let mark = if self.terminal { "✓" } else { "ok" };
        let took = self.paint(Style::Dim, &seconds(took));
        let line = format!("  {} {text}  {took}", self.paint(Style::Green, mark));
        self.line(&line);
    }

    /// Something that is wrong.
    pub(crate) fn wrong(&mut self, text: &str) {
        let mark = if self.terminal { "✗" } else { "WRONG" };
        let line = format!("  {} {text}", self.paint(Style::Red, mark));
        self.line(&line);
    }

    /// A plain fact.
    pub(crate) fn say(&mut self, text: &str) {
        self.line(&format!("    {text}"));
    }

    /// What to look at.
    pub(crate) fn look(&mut self, text: &str) {
        let mark = if self.terminal { "→" } else { "look:" };
        let line = format!("  {}", self.paint(Style::Dim, &format!("{mark} {text}")));
        self.line(&line);
    }

    /// Text to be copied: no mark before it, nothing cut off.
    pub(crate) fn code(&mut self, text: &str) {
        for line in text.trim_matches('\n').lines() {
            let line = format!("      {}", self.paint(Style::Cyan, line));
            self.line(line.trim_end());
        }
    }

    /// An aligned table; a column of numbers stands to the right.
    pub(crate) fn table<const N: usize>(&mut self, headers: [&str; N], rows: &[[String; N]]) {
        for (number, line) in aligned(headers, rows).into_iter().enumerate() {
            let styled = if number == 0 { self.paint(Style::Bold, &line) } else { line };
            self.line(&format!("      {styled}"));
        }
    }

    /// The last line.
    pub(crate) fn verdict(&mut self, text: &str, good: bool) {
        let style = if good { Style::Green } else { Style::Red };
        let line = self.paint(style, text);
        self.line(&line);
    }

    /// A box in the place of the one drawn before; on a terminal only.
    pub(crate) fn panel(&mut self, title: &str, lines: &[(Style, String)]) {
        if !self.terminal {
            return;
        }
        self.clear_progress();
        let inner = self.width - 4;
        let mut out = String::new();
        if self.drawn > 0 {
            let _ = write!(out, "\x1b[{}A", self.drawn);
        }
        let title = fitted(title, inner - 2);
        let rule = "─".repeat(inner - 1 - title.chars().count());
        let edge = |text: &str| self.paint(Style::Dim, text);
        let _ =
            writeln!(out, "\x1b[2K{} {} {}", edge("╭─"), self.paint(Style::Bold, &title), edge(&format!("{rule}╮")));
        for (style, text) in lines {
            let text = fitted(text, inner);
            let padding = " ".repeat(inner - text.chars().count());
            let _ = writeln!(out, "\x1b[2K{} {}{padding} {}", edge("│"), self.paint(*style, &text), edge("│"));
        }
        let _ = writeln!(out, "\x1b[2K{}", edge(&format!("╰{}╯", "─".repeat(inner + 2))));
        self.write(&out);
        self.drawn = lines.len() + 2;
    }

    /// The panel stays where it is.
    pub(crate) fn leave_panel(&mut self) {
        self.drawn = 0;
    }

    fn line(&mut self, text: &str) {
        self.clear_progress();
        self.drawn = 0;
        self.write(&format!("{text}\n"));
    }

    fn clear_progress(&mut self) {
        if std::mem::take(&mut self.progress) {
            self.write("\r\x1b[2K");
        }
    }

    fn write(&self, text: &str) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    fn paint(&self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Green => "1;32",
            Style::Red => "1;31",
            Style::Cyan => "36",
            Style::Plain => return text.to_owned(),
        };
        if self.colour && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Header and rows with their columns below each other.
pub(crate) fn aligned<const N: usize>(headers: [&str; N], rows: &[[String; N]]) -> Vec<String> {
    let width = |text: &str| text.chars().count();
    let mut widths = headers.map(width);
    let mut numbers = [true; N];
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            widths[column] = widths[column].max(width(cell));
            numbers[column] &= cell.chars().all(|c| c.is_ascii_digit() || "¥,.+-−% s~".contains(c));
        }
    }
    let line = |cells: [&str; N]| {
        let mut line = String::new();
        for (column, cell) in cells.into_iter().enumerate() {
            let padding = " ".repeat(widths[column] - width(cell));
            let _ = match numbers[column] {
                true => write!(line, "{padding}{cell}  "),
                false => write!(line, "{cell}{padding}  "),
            };
        }
        line.trim_end().to_owned()
    };
    let head = [line(headers)];
    head.into_iter().chain(rows.iter().map(|row| line(row.each_ref().map(String::as_str)))).collect()
}

/// `1234567` as `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// An amount as the databases print it, for people: `1234567.00` as `¥1,234,567`.
pub(crate) fn yen(amount: &str) -> String {
    let (sign, digits) = amount.strip_prefix('-').map_or(("", amount), |digits| ("−", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let Ok(whole) = whole.parse() else {
        return amount.to_owned();
    };
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}¥{}{point}{fraction}", count(whole))
}

/// So many a second.
pub(crate) fn rate(number: u64, took: Duration) -> String {
    let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
    format!("{}/s", count(number.saturating_mul(1_000) / milliseconds))
}

pub(crate) fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

/// A row of bars, the highest for `top`.
pub(crate) fn bars(values: &[f64], top: f64) -> String {
    let bar = |value: &f64| {
        let eighth = (value / top.max(f64::MIN_POSITIVE) * 7.0).round().clamp(0.0, 7.0);
        BARS[eighth as usize]
    };
    values.iter().map(bar).collect()
}

fn fitted(text: &str, width: usize) -> String {
    match text.chars().count() <= width {
        true => text.to_owned(),
        false => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(["1234567.00", "-12.50", "x"].map(yen), ["¥1,234,567", "−¥12.5", "x"]);
        assert_eq!(rate(5_000, Duration::from_millis(500)), "10,000/s");
    }

    #[test]
    fn columns_of_numbers_stand_to_the_right() {
        let rows = [["yoshida".to_owned(), "¥5".to_owned()], ["äö".to_owned(), "¥1,000".to_owned()]];
        assert_eq!(aligned(["trail", "revenue"], &rows), ["trail    revenue", "yoshida       ¥5", "äö        ¥1,000"]);
    }

    #[test]
    fn a_long_text_ends_in_a_dot_dot_dot() {
        assert_eq!((fitted("日本語", 3).as_str(), fitted("日本語", 2).as_str()), ("日本語", "日…"));
    }

    #[test]
    fn bars_follow_their_values() {
        assert_eq!(bars(&[0.0, 1.0, 2.0, 9.0], 2.0), "▁▅██");
    }
}
