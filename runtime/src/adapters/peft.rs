//! Adapters from and to PEFT folders.
//!
//! A module that PEFT saves whole becomes differences to the base's: `dense` of its weight, `norm` of its gain, `bias`.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use inlay_format::points::{CALIBRATION_SUFFIX, Point, PointOp};
use inlay_format::record::{BaseId, RecordError};

use super::adapter::by_settings;
use super::{Adapter, AdapterError, AdapterKind, AdapterPoint, Bias, Dense, Ia3, Lora, Norm, Part, Settings, Site};
use crate::base::Base;
use crate::peft::{self, Ia3Factors, LoraTensors, PeftError, PeftLora, Prefix, SavedTensor};
use crate::plan::node_weight;

/// Of kinds without rank and alpha.
const PLAIN: Settings = Settings { rank: 0, alpha: 1.0, rslora: false };

impl Adapter {
    /// An adapter from a PEFT folder of LoRA or (IA)3, and the prefix by which its module paths differ from those of `base`.
    /// Modules that the folder has whole (`modules_to_save`) become differences to the base's.
    ///
    /// # Errors
    /// When the folder cannot be read, or holds what cannot be applied to `base` as it is meant.
    pub fn from_peft(base: &Base, folder: impl AsRef<Path>) -> Result<(Self, Prefix), AdapterError> {
        if peft::peft_type(folder.as_ref())? == "IA3" {
            return Self::from_peft_ia3(base, folder.as_ref());
        }
        let floats = |name: &str| base.floats(name);
        let (lora, prefix) = peft::read(folder.as_ref(), base.points(), &floats)?;
        let tensors: HashMap<&str, &LoraTensors> =
            lora.points.iter().map(|point| (point.path.as_str(), point)).collect();
        let sites = Lora.sites(base).into_iter().filter_map(|site| {
            let LoraTensors { rank, alpha, .. } = **tensors.get(site.path.as_str())?;
            Some((Settings { rank, alpha, rslora: lora.rslora }, site))
        });
        let mut parts = Vec::new();
        for (settings, sites) in by_settings(sites.collect()) {
            parts.push(Part::new(base, &Lora, settings, &sites, |site, _| {
                let LoraTensors { a, b, .. } = tensors[site.path.as_str()];
                Ok(vec![a.clone(), b.clone()])
            })?);
        }
        parts.extend(differences(base, &lora.saved)?);
        Ok((Self::from_parts(base, parts)?, prefix))
    }

    fn from_peft_ia3(base: &Base, folder: &Path) -> Result<(Self, Prefix), AdapterError> {
        let (factors, prefix) = peft::read_ia3(folder, base.points())?;
        let of = |site: &Site| factors.iter().find(|factors| factors.path == site.path);
        let mut sites = Ia3.sites(base);
        sites.retain(|site| of(site).is_some());
        let part = Part::new(base, &Ia3, PLAIN, &sites, |site, _| {
            Ok(vec![of(site).expect("sites without factors were dropped").l.clone()])
        })?;
        Ok((Self::from_parts(base, vec![part])?, prefix))
    }

    /// The adapter as a PEFT folder, which is created if it is not there. Modules with differences of kinds `dense`, `norm` or
    /// `bias` are written whole (`modules_to_save`).
    ///
    /// # Errors
    /// When the adapter has parts that PEFT does not know or is of another base, or a file cannot be written.
    pub fn to_peft(&self, base: &Base, folder: impl AsRef<Path>) -> Result<(), AdapterError> {
        let (expected, found) = (BaseId::from(base.fingerprint()), self.base());
        if expected != found {
            return Err(RecordError::OtherBase { expected, found }.into());
        }
        if let [part] = self.parts.as_slice()
            && part.kind.id() == Ia3.id()
        {
            let factors = |point: &AdapterPoint| Ia3Factors { path: point.path.clone(), l: point.tensors[0].clone() };
            let factors: Vec<Ia3Factors> = part.points.iter().map(factors).collect();
            return Ok(peft::write_ia3(folder.as_ref(), &factors, base.points())?);
        }
        let of_peft = [Lora.id(), Dense.id(), Norm.id(), Bias.id()];
        if let Some(part) = self.parts.iter().find(|part| !of_peft.contains(&part.kind.id())) {
            return Err(AdapterError::NotInPeft { kind: part.kind.name() });
        }
        let parts = || self.parts.iter().filter(|part| part.kind.id() == Lora.id());
        // PEFT has one `use_rslora`; a scaling of either kind can be written as an alpha of the other.
        let rslora = parts().all(|part| part.settings.rslora) && parts().next().is_some();
        let points = parts().flat_map(|part| {
            let Settings { rank, alpha, rslora: own } = part.settings;
            let alpha = if own == rslora { alpha } else { part.settings.scaling() * f32::from(rank) };
            part.points.iter().map(move |point| LoraTensors {
                path: point.path.clone(),
                rank,
                alpha,
                a: point.tensors[0].clone(),
                b: point.tensors[1].clone(),
            })
        });
        let mut points: Vec<LoraTensors> = points.collect();
        points.sort_unstable_by(|x, y| x.path.cmp(&y.path));
        let lora = PeftLora { rslora, points, saved: self.whole_modules(base)? };
        Ok(peft::write(folder.as_ref(), &lora, base.points(), &|name| base.floats(name))?)
    }

    /// The modules that parts of kinds `dense`, `norm` and `bias` change, with all of their parameters.
    fn whole_modules(&self, base: &Base) -> Result<Vec<SavedTensor>, AdapterError> {
        let of = |kind: &dyn AdapterKind, path: &str| {
            let parts = self.parts.iter().filter(|part| part.kind.id() == kind.id());
            parts
                .flat_map(|part| &part.points)
                .find(|point| point.path == path)
                .map(|point| point.tensors[0].as_slice())
        };
        let mut modules = BTreeSet::new();
        for part in self.parts.iter().filter(|part| part.kind.id() != Lora.id()) {
            for AdapterPoint { path, .. } in &part.points {
                let module = match part.kind.id() {
                    id if id == Dense.id() => Some(path.clone()),
                    id if id == Norm.id() => path.strip_suffix(".weight").map(str::to_owned),
                    _ => module_of_bias(base, path),
                };
                modules.insert(module.ok_or_else(|| saved(path, "is of no module by its name, which PEFT needs"))?);
            }
        }
        let mut tensors = Vec::new();
        for module in modules {
            let name = format!("{module}.weight");
            let (shape, values) = match (point(base, &module), Norm::of(base, &module)) {
                (Some(point), _) => {
                    let mut weight = weight(base, point)?;
                    let (delta, factors) = (of(&Dense, &module), WeightFactors::of(base, point)?);
                    for (i, (value, at)) in weight.iter_mut().zip(places(point)).enumerate() {
                        *value = (*value + delta.map_or(0.0, |delta| delta[at])) / factors.at(i);
                    }
                    (torch_shape(point), weight)
                }
                (None, Some(site)) => vector(base, &site, of(&Norm, &site.path))?,
                (None, None) => {
                    return Err(saved(&name, "is neither at a linear or convolution nor a gain; leave it out"));
                }
            };
            tensors.push(SavedTensor { name, shape, values });
            if let Some(site) = Bias::of(base, &module) {
                let (shape, values) = vector(base, &site, of(&Bias, &site.path))?;
                tensors.push(SavedTensor { name: format!("{module}.bias"), shape, values });
            }
        }
        Ok(tensors)
    }
}

/// Parts that make the base's parameters those of `tensors`.
fn differences(base: &Base, tensors: &[SavedTensor]) -> Result<Vec<Part>, AdapterError> {
    let kinds: [&'static dyn AdapterKind; 3] = [&Dense, &Norm, &Bias];
    let mut found = kinds.map(|kind| (kind, Vec::<(Site, Vec<f32>)>::new()));
    for tensor in tensors {
        let expect = |shape: &[usize]| match tensor.shape == shape {
            true => Ok(()),
            false => Err(PeftError::Shape {
                key: tensor.name.clone(),
                found: tensor.shape.clone(),
                expected: shape.to_vec(),
            }),
        };
        let (module, parameter) = tensor.name.rsplit_once('.').unwrap_or_default();
        let of_vector = |site: Site| {
            let (shape, values) = vector(base, &site, None)?;
            expect(&shape)?;
            let factors = vector_factors(base, &site, values.len())?;
            let differences = tensor.values.iter().zip(values).zip(factors);
            let delta = differences.map(|((new, old), factor)| (new - old) * factor).collect();
            Ok::<_, AdapterError>((site, delta))
        };
        match (parameter, point(base, module)) {
            ("weight", Some(point)) => {
                if point.op == PointOp::Conv && point.row_scale.is_some() {
                    return Err(saved(
                        &tensor.name,
                        "has a normalization folded into it in the base; export it unfolded",
                    ));
                }
                expect(&torch_shape(point))?;
                let mut delta = vec![0.0; tensor.values.len()];
                let (old, factors) = (weight(base, point)?, WeightFactors::of(base, point)?);
                for (i, ((new, old), at)) in tensor.values.iter().zip(old).zip(places(point)).enumerate() {
                    delta[at] = new * factors.at(i) - old;
                }
                found[0].1.push((Site::at_point(point), delta));
            }
            _ => {
                let site = match parameter {
                    "weight" => Norm::of(base, module).map(|site| (1, site)),
                    "bias" => Bias::of(base, module).map(|site| (2, site)),
                    _ => None,
                };
                let nothing = "is of nothing that the base has; export the base with a point there";
                let (kind, site) = site.ok_or_else(|| saved(&tensor.name, nothing))?;
                found[kind].1.push(of_vector(site)?);
            }
        }
    }
    let parts = found.into_iter().map(|(kind, mut deltas)| {
        deltas.retain(|(_, delta): &(Site, Vec<f32>)| delta.iter().any(|x| *x != 0.0));
        let sites: Vec<Site> = deltas.iter().map(|(site, _)| site.clone()).collect();
        Part::new(base, kind, PLAIN, &sites, |site, _| {
            let (_, delta) = deltas.iter().find(|(of, _)| of == site).expect("the sites are theirs");
            Ok(vec![delta.clone()])
        })
    });
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    Ok(parts.into_iter().filter(|part| !part.points().is_empty()).collect())
}

fn saved(name: &str, reason: &'static str) -> AdapterError {
    PeftError::Saved { name: name.to_owned(), reason }.into()
}

/// The linear or convolution of that path.
fn point<'a>(base: &'a Base, path: &str) -> Option<&'a Point<String>> {
    base.points().iter().find(|point| point.path == path && point.op != PointOp::Embedding)
}

/// PyTorch's shape of a weight: `[d_out, d_in, k..]`.
fn torch_shape(point: &Point<String>) -> Vec<usize> {
    [point.d_out, point.d_in].iter().chain(&point.kernel).map(|&size| size as usize).collect()
}

/// For each element of PyTorch's weight, its place in the difference of a dense part: a linear's is `[d_in, d_out]`.
fn places(point: &Point<String>) -> impl Iterator<Item = usize> {
    let (d_in, d_out) = (point.d_in as usize, point.d_out as usize);
    let elements = torch_shape(point).iter().product();
    let is_conv = point.op == PointOp::Conv;
    (0..elements).map(move |i| if is_conv { i } else { i % d_in * d_out + i / d_in })
}

/// The base's weight at a point, in PyTorch's layout.
fn weight(base: &Base, point: &Point<String>) -> Result<Vec<f32>, AdapterError> {
    let no_node = || AdapterError::NoNode { path: point.path.clone(), node: point.node.clone() };
    let weight = node_weight(base.graph(), &point.node).ok_or_else(no_node)?;
    let view = weight.view();
    Ok((0..weight.n()).flat_map(|n| (0..weight.k()).map(move |k| view.get(k, n))).collect())
}

/// The factors that calibration put on a linear's weight, in PyTorch's layout.
struct WeightFactors {
    d_in: usize,
    inputs: Option<Vec<f32>>,
    outputs: Option<Vec<f32>>,
}

impl WeightFactors {
    fn of(base: &Base, point: &Point<String>) -> Result<Self, AdapterError> {
        let find = |name: &Option<String>, count: u32| {
            let name = name.as_ref().filter(|_| point.op == PointOp::Linear);
            name.map(|name| factors(base, &point.path, name, count as usize)).transpose()
        };
        let (inputs, outputs) = (find(&point.input_scale, point.d_in)?, find(&point.row_scale, point.d_out)?);
        Ok(WeightFactors { d_in: point.d_in as usize, inputs, outputs })
    }

    /// That of the element at `index`.
    fn at(&self, index: usize) -> f32 {
        let of = |factors: &Option<Vec<f32>>, channel: usize| factors.as_ref().map_or(1.0, |factors| factors[channel]);
        of(&self.inputs, index % self.d_in) * of(&self.outputs, index / self.d_in)
    }
}

/// The factors that calibration put on a bias or gain of `count` elements; ones if it did not.
fn vector_factors(base: &Base, site: &Site, count: usize) -> Result<Vec<f32>, AdapterError> {
    let name = format!("{}{CALIBRATION_SUFFIX}", site.path);
    if base.constant(&name).is_none() {
        return Ok(vec![1.0; count]);
    }
    factors(base, &site.path, &name, count)
}

/// The factors in an initializer, one for each of `count` channels.
fn factors(base: &Base, path: &str, name: &str, count: usize) -> Result<Vec<f32>, AdapterError> {
    let refused = |reason| PeftError::Factor { path: path.to_owned(), name: name.to_owned(), reason };
    let factors = base.floats(name).ok_or_else(|| refused("is not in the base"))?;
    let is_usable = factors.len() == count && factors.iter().all(|f| f.is_finite() && *f != 0.0);
    if is_usable { Ok(factors) } else { Err(refused("is not a number other than zero for each channel").into()) }
}

/// A bias or gain with a difference, without the factors of calibration, and its shape.
fn vector(base: &Base, site: &Site, delta: Option<&[f32]>) -> Result<(Vec<usize>, Vec<f32>), AdapterError> {
    let values = base.floats(&site.path);
    let mut values =
        values.ok_or_else(|| saved(&site.path, "shares its values with another module; use another kind"))?;
    let factors = vector_factors(base, site, values.len())?;
    for (i, (value, factor)) in values.iter_mut().zip(factors).enumerate() {
        *value = (*value + delta.map_or(0.0, |delta| delta[i])) / factor;
    }
    Ok((vec![values.len()], values))
}

/// The module that a bias belongs to.
fn module_of_bias(base: &Base, path: &str) -> Option<String> {
    let is_its = |module: &str| Bias::of(base, module).is_some_and(|site| site.path == path);
    let named = path.strip_suffix(".bias").filter(|module| is_its(module));
    let points = || base.points().iter().map(|point| point.path.as_str());
    named.or_else(|| points().find(|module| is_its(module))).map(str::to_owned)
}
