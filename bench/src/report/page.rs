//! One HTML file that loads nothing from anywhere.

use std::fmt::Write as _;

use crate::origin::Origin;

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.87rem; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #d9dee3; }
th.name, td.name { text-align: left; }
.scroll { overflow-x: auto; } svg { max-width: 100%; height: auto; } dt { font-weight: 600; } dd { margin: 0 0 0.3rem; }
";

/// A page that is built from top to bottom.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    title: String,
    body: String,
}

impl Page {
    /// A page whose first lines say what was measured, where and when.
    pub(crate) fn new(title: &str, origin: &Origin) -> Page {
        let unknown = || "unknown".to_owned();
        let cores = origin.cores.map_or_else(unknown, |cores| cores.to_string());
        let facts = [
            ("Processor", origin.cpu.clone().unwrap_or_else(unknown)),
            ("Cores", cores),
            ("Commit", origin.commit.clone().unwrap_or_else(unknown)),
            ("Date", origin.date.clone().unwrap_or_else(unknown)),
        ];
        let mut body = format!("<h1>{}</h1>\n<dl>\n", escaped(title));
        for (name, value) in facts {
            let _ = writeln!(body, "<dt>{name}</dt><dd>{}</dd>", escaped(&value));
        }
        body.push_str("</dl>\n");
        Page {
            title: title.to_owned(),
            body,
        }
    }

    pub(crate) fn heading(&mut self, text: &str) {
        let _ = writeln!(self.body, "<h2>{}</h2>", escaped(text));
    }

    pub(crate) fn paragraph(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p>{}</p>", escaped(text));
    }

    /// As [`super::table`].
    pub(crate) fn table(&mut self, names: usize, heads: &[&str], rows: &[Vec<String>]) {
        let row = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::from("<tr>");
            for (column, cell) in cells.enumerate() {
                let class = if column < names {
                    " class=\"name\""
                } else {
                    ""
                };
                let _ = write!(line, "<{tag}{class}>{}</{tag}>", escaped(cell));
            }
            line + "</tr>\n"
        };
        self.body.push_str("<div class=\"scroll\"><table>\n");
        self.body.push_str(&row("th", &mut heads.iter().copied()));
        for cells in rows {
            let line = row("td", &mut cells.iter().map(String::as_str));
            self.body.push_str(&line);
        }
        self.body.push_str("</table></div>\n");
    }

    /// An image that a plot of this crate drew, and what it shows.
    pub(crate) fn figure(&mut self, svg: &str, caption: &str) {
        let _ = writeln!(
            self.body,
            "<figure>{svg}<figcaption>{}</figcaption></figure>",
            escaped(caption)
        );
    }

    /// The file's text.
    pub(crate) fn into_html(self) -> String {
        let Page { title, body } = self;
        let title = escaped(&title);
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
             <style>{STYLE}</style></head>\n<body>\n{body}</body>\n</html>\n"
        )
    }
}

/// `text` as character data or attribute value.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_its_parts_escaped_and_loads_nothing() {
        let mut page = Page::new("a <b>", &Origin::here_and_now());
        page.paragraph("1 < 2 & \"3\"");
        page.table(1, &["x", "y"], &[vec!["<i>".into(), "2".into()]]);
        let html = page.into_html();
        assert!(html.contains("<title>a &lt;b&gt;</title>"));
        assert!(html.contains("1 &lt; 2 &amp; &quot;3&quot;"));
        assert!(html.contains("<td class=\"name\">&lt;i&gt;</td><td>2</td>"));
        for loading in ["src=", "href=", "url(", "@import"] {
            assert!(!html.contains(loading), "{loading}");
        }
    }
}
