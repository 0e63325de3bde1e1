//! Drawing: an SVG document that is being written, and the same as a PNG.

use std::fmt::{Arguments, Write as _};
use std::sync::Arc;

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree};

use crate::Result;

/// Pixels of a PNG for one unit of the SVG.
const PNG_SCALE: f32 = 2.0;

/// Text and what stands out.
pub const INK: &str = "#0f172a";
/// Text that explains.
pub const MUTED: &str = "#64748b";
/// Lines of a grid.
pub const GRID: &str = "#e2e8f0";

/// An SVG document that is being written: a white sheet with round corners.
pub struct Page(String);

impl Page {
    /// A sheet of that size.
    pub fn new(width: f64, height: f64) -> Self {
        let mut page = Page(String::new());
        page.push(format_args!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="Inter, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif">
<rect width="100%" height="100%" rx="16" fill="#ffffff"/>"##
        ));
        page
    }

    /// Adds an element.
    pub fn push(&mut self, element: Arguments<'_>) {
        let _ = writeln!(self.0, "{element}");
    }

    /// Adds text. `style`: anchor, size, weight, colour.
    pub fn text(&mut self, x: f64, y: f64, style: (&str, u32, u32, &str), text: &str) {
        let (anchor, size, weight, fill) = style;
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.push(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" fill="{fill}">{text}</text>"#
        ));
    }

    /// Adds a straight line with round ends.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), color: &str, width: f64) {
        self.push(format_args!(
            r#"<path d="M{:.1} {:.1}L{:.1} {:.1}" stroke="{color}" stroke-width="{width}" stroke-linecap="round"/>"#,
            from.0, from.1, to.0, to.1
        ));
    }

    /// The document.
    pub fn finish(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

/// Renders an SVG document to a PNG file's bytes, with the fonts that come with the demos.
///
/// # Errors
/// When `svg` is not an SVG document.
pub fn png(svg: &str) -> Result<Vec<u8>> {
    let mut options = Options { font_family: "Inter".into(), ..Options::default() };
    let fonts = Arc::make_mut(&mut options.fontdb);
    fonts.load_font_data(include_bytes!("../fonts/Inter-Regular.ttf").to_vec());
    fonts.load_font_data(include_bytes!("../fonts/Inter-SemiBold.ttf").to_vec());
    let tree = Tree::from_str(svg, &options)?;
    let size = tree.size().to_int_size().scale_by(PNG_SCALE).ok_or("the chart has no area")?;
    let mut pixels = Pixmap::new(size.width(), size.height()).ok_or("the chart has no area")?;
    resvg::render(&tree, Transform::from_scale(PNG_SCALE, PNG_SCALE), &mut pixels.as_mut());
    Ok(pixels.encode_png()?)
}

/// Whether the demos' fonts have this character (`fonts/make_fonts.py`).
#[cfg(test)]
pub(crate) fn is_in_fonts(c: char) -> bool {
    c == '\n' || (' '..='~').contains(&c) || "–—·×−•…±°".contains(c)
}
