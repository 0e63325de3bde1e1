//! Kernel calls on views.

use inlay_devices::kernels::{
    ACCUMULATE, Binary, BinaryOp, BinaryParams, Copy, CopyParams, Fill, FillParams, Matmul, MatmulParams, Reduce,
    ReduceOp, ReduceParams, Select, SelectParams, Unary, UnaryOp, UnaryParams,
};

use super::lower::{Lowering, Operand, u};
use super::view::View;
use crate::ops::OpError;

/// [`ACCUMULATE`] or nothing.
pub(crate) fn accumulated(accumulate: bool) -> u32 {
    if accumulate { ACCUMULATE } else { 0 }
}

/// A shape with as few dimensions as the strides of all operands allow, and those strides.
fn collapse<const O: usize>(shape: &[usize], strides: [&[usize]; O]) -> (Vec<usize>, [Vec<usize>; O]) {
    let mut dims: Vec<usize> = Vec::new();
    let mut out: [Vec<usize>; O] = std::array::from_fn(|_| Vec::new());
    for (i, &d) in shape.iter().enumerate().filter(|(_, d)| **d != 1) {
        let joins = !dims.is_empty() && (0..O).all(|o| out[o].last() == Some(&(strides[o][i] * d)));
        if joins {
            *dims.last_mut().expect("there is one to join") *= d;
        } else {
            dims.push(d);
        }
        for o in 0..O {
            if joins {
                out[o].pop();
            }
            out[o].push(strides[o][i]);
        }
    }
    (dims, out)
}

/// As many dimensions as a kernel takes, leading ones 1.
fn padded<const D: usize>(values: &[usize], fill: usize) -> [u32; D] {
    let lead = D - values.len();
    std::array::from_fn(|i| u(if i < lead { fill } else { values[i - lead] }))
}

fn too_many_dimensions<const D: usize>(dims: &[usize]) -> Result<(), OpError> {
    if dims.len() <= D {
        return Ok(());
    }
    Err(OpError::Unsupported { what: "a broadcast or copy over that many dimensions", way_out: "re-export the model" })
}

impl Lowering<'_> {
    /// `to (=|+=) from`, element by element, both with any strides.
    pub fn copy(&mut self, from: &View, to: &View, accumulate: bool) {
        debug_assert_eq!(from.shape, to.shape);
        let (dims, [src, dst]) = collapse(&to.shape, [&from.strides, &to.strides]);
        if dims.len() > 6 {
            // Seven or eight dimensions that do not collapse: one copy per index of the first.
            for i in 0..to.shape[0] {
                let part = |view: &View| {
                    let mut part = view.sliced(0, i, 1, 1);
                    part.shape.remove(0);
                    part.strides.remove(0);
                    part
                };
                self.copy(&part(from), &part(to), accumulate);
            }
            return;
        }
        // Kernels are bound to whole buffers here, since views may start anywhere.
        let whole = |view: &View| {
            let len = view.offset + view.extent();
            View { offset: 0, shape: vec![len], strides: vec![1], ..view.clone() }
        };
        let params = CopyParams {
            dims: padded(&dims, 1),
            src: padded(&src, 0),
            dst: padded_written(&dims, &dst),
            src_offset: u(from.offset),
            dst_offset: u(to.offset),
            flags: accumulated(accumulate),
        };
        self.call::<Copy>(&params, &[whole(from).into(), whole(to).into()]);
    }

    /// `y = value`, row-major.
    pub fn fill(&mut self, y: &View, value: f32) {
        self.call::<Fill>(&FillParams { len: u(y.count()), value }, &[y.into()]);
    }

    /// `y (=|+=) f(x)`, both row-major.
    pub fn unary(&mut self, op: UnaryOp, [a, b]: [f32; 2], x: &View, y: &View, accumulate: bool) {
        let params = UnaryParams { len: u(y.count()), op: op as u32, flags: accumulated(accumulate), a, b };
        self.call::<Unary>(&params, &[x.into(), Operand::ABSENT, y.into()]);
    }

    /// `dx (=|+=) dy f'(x)`, all row-major.
    pub fn unary_gradient(&mut self, op: UnaryOp, [a, b]: [f32; 2], [x, dy]: [&View; 2], dx: &View, accumulate: bool) {
        let flags = UnaryParams::GRADIENT | accumulated(accumulate);
        let params = UnaryParams { len: u(dx.count()), op: op as u32, flags, a, b };
        self.call::<Unary>(&params, &[x.into(), dy.into(), dx.into()]);
    }

    /// `y (=|+=) f(a, b)`, a and b broadcast to the row-major y.
    ///
    /// # Errors
    /// When the operands lie too irregularly.
    pub fn binary(&mut self, op: BinaryOp, [a, b]: [&View; 2], y: &View, accumulate: bool) -> Result<(), OpError> {
        let (a, b) = (self.bindable(a), self.bindable(b));
        let (a, b) = (a.broadcast_to(&y.shape), b.broadcast_to(&y.shape));
        let (dims, [sa, sb]) = collapse(&y.shape, [&a.strides, &b.strides]);
        too_many_dimensions::<5>(&dims)?;
        let params = BinaryParams {
            dims: padded(&dims, 1),
            a: padded(&sa, 0),
            b: padded(&sb, 0),
            op: op as u32,
            flags: accumulated(accumulate),
        };
        self.call::<Binary>(&params, &[a.into(), b.into(), y.into()]);
        Ok(())
    }

    /// `y (=|+=) cond != 0 ? a : b`, broadcast to the row-major y.
    ///
    /// # Errors
    /// When the operands lie too irregularly.
    pub fn select(&mut self, cond: &View, [a, b]: [&View; 2], y: &View, accumulate: bool) -> Result<(), OpError> {
        let [cond, a, b] = [cond, a, b].map(|v| self.bindable(v).broadcast_to(&y.shape));
        let (dims, [sc, sa, sb]) = collapse(&y.shape, [&cond.strides, &a.strides, &b.strides]);
        too_many_dimensions::<5>(&dims)?;
        let params = SelectParams {
            dims: padded(&dims, 1),
            cond: padded(&sc, 0),
            a: padded(&sa, 0),
            b: padded(&sb, 0),
            flags: accumulated(accumulate),
        };
        self.call::<Select>(&params, &[cond.into(), a.into(), b.into(), y.into()]);
        Ok(())
    }

    /// `y[kept] (=|+=) scale op x[kept, axes]`, y row-major.
    ///
    /// # Errors
    /// When x lies too irregularly.
    pub fn reduce(
        &mut self,
        op: ReduceOp,
        x: &View,
        axes: &[usize],
        scale: f32,
        y: &View,
        accumulate: bool,
    ) -> Result<(), OpError> {
        let x = self.bindable(x);
        let part = |keep: bool| -> (Vec<usize>, Vec<usize>) {
            (0..x.shape.len()).filter(|i| axes.contains(i) != keep).map(|i| (x.shape[i], x.strides[i])).unzip()
        };
        let (kept, kept_strides) = part(true);
        // Row-major y lets kept dimensions join wherever those of x do.
        let (kept, [kept_strides]) = collapse(&kept, [&kept_strides]);
        let (reduced, reduced_strides) = part(false);
        let (reduced, [reduced_strides]) = collapse(&reduced, [&reduced_strides]);
        too_many_dimensions::<4>(&kept)?;
        too_many_dimensions::<4>(&reduced)?;
        let params = ReduceParams {
            kept: padded(&kept, 1),
            kept_strides: padded(&kept_strides, 0),
            reduced: padded(&reduced, 1),
            reduced_strides: padded(&reduced_strides, 0),
            op: op as u32,
            scale,
            flags: accumulated(accumulate),
        };
        self.call::<Reduce>(&params, &[(&x).into(), y.into()]);
        Ok(())
    }

    /// Sums `from` over the dimensions along which the row-major `to` was broadcast.
    ///
    /// # Errors
    /// When `from` lies too irregularly.
    pub fn reduce_broadcast(&mut self, from: &View, to: &View, accumulate: bool) -> Result<(), OpError> {
        let lead = from.shape.len() - to.shape.len();
        let axes: Vec<usize> =
            (0..from.shape.len()).filter(|&i| i < lead || to.shape[i - lead] != from.shape[i]).collect();
        if axes.is_empty() {
            self.copy(from, to, accumulate);
            return Ok(());
        }
        self.reduce(ReduceOp::Sum, from, &axes, 1.0, to, accumulate)
    }

    /// `c (=|+=) alpha a b` over the last two dimensions; leading ones broadcast to those of c.
    ///
    /// # Errors
    /// When the leading dimensions do not join to two.
    pub fn matmul(&mut self, alpha: f32, [a, b]: [&View; 2], c: &View, accumulate: bool) -> Result<(), OpError> {
        let rank = c.shape.len();
        let lead = &c.shape[..rank - 2];
        let batch = |view: &View| {
            let own = view.shape.len() - 2;
            super::view::broadcast_strides(&view.shape[..own], &view.strides[..own], lead)
        };
        let (a, b) = (self.bindable(a), self.bindable(b));
        let (dims, [sa, sb, sc]) = collapse(lead, [&batch(&a), &batch(&b), &c.strides[..rank - 2]]);
        too_many_dimensions::<2>(&dims)?;
        let [b0, b1] = padded(&dims, 1);
        let (m, n, k) = (c.shape[rank - 2], c.shape[rank - 1], a.shape[a.shape.len() - 1]);
        let strides = |batch: &[usize], view: &View| {
            let [s0, s1]: [u32; 2] = padded(batch, 0);
            let own = view.shape.len();
            [s0, s1, u(view.strides[own - 2]), u(view.strides[own - 1])]
        };
        let mut c_strides = strides(&sc, c);
        // A written operand has no stride of 0, even where there is one index.
        let c_dims = [b0, b1, u(m), u(n)];
        for (stride, dim) in c_strides.iter_mut().zip(c_dims) {
            if dim == 1 {
                *stride = u(c.extent().max(1));
            }
        }
        let params = MatmulParams {
            b0,
            b1,
            m: u(m),
            n: u(n),
            k: u(k),
            a: strides(&sa, &a),
            b: strides(&sb, &b),
            c: c_strides,
            alpha,
            flags: accumulated(accumulate),
        };
        self.call::<Matmul>(&params, &[a.into(), b.into(), c.into()]);
        Ok(())
    }

    /// The view, or a copy when it starts where no kernel can be bound.
    fn bindable(&mut self, view: &View) -> View {
        if self.buffers.is_bindable(view) {
            return view.clone();
        }
        let copy = self.scratch(&view.shape);
        self.copy(view, &copy, false);
        copy
    }
}

/// Strides of a written operand; where there is one index, anything but 0.
fn padded_written<const D: usize>(dims: &[usize], strides: &[usize]) -> [u32; D] {
    let lead = D - dims.len();
    std::array::from_fn(|i| if i < lead { 1 } else { u(strides[i - lead]) })
}
