//! Adapters as records, and back.

use std::collections::HashMap;

use inlay_format::record::{
    self, Dtype, PartHeader, PartValues, PathHash, PointValues, Record, RecordError, TensorValues, encode, encoded_len,
};

use super::groups::{from_groups, groups, to_groups};
use super::{Adapter, AdapterError, AdapterKind, AdapterPoint, KINDS, Part, Settings, Site};
use crate::base::Base;

impl Adapter {
    /// An adapter from the bytes of a record.
    ///
    /// # Errors
    /// When the record is damaged, of another base, of an unknown kind, or does not fit its points.
    pub fn from_record(base: &Base, bytes: &[u8]) -> Result<Self, AdapterError> {
        Record::decode(bytes)?.expect_base(&base.fingerprint())?;
        Self::rebind(base, bytes)
    }

    /// An adapter from the record of another base, as a start for training on this one: the same tensors at the points of
    /// the same paths. What it does there has to be measured; it was not trained for it. Between bases of which one was
    /// calibrated at export, whose linears see scaled inputs, an adapter goes by way of a PEFT folder instead
    /// ([`Adapter::to_peft`], [`Adapter::from_peft`]), which has no factors.
    ///
    /// # Errors
    /// As [`Adapter::from_record`], but for the base: when it does not fit the points of this one.
    pub fn rebind(base: &Base, bytes: &[u8]) -> Result<Self, AdapterError> {
        let record = Record::decode(bytes)?;
        let parts = record.parts().map(|part| read_part(base, &part, record.version()));
        Self::from_parts(base, parts.collect::<Result<_, _>>()?)
    }

    /// The adapter as a record with values of `dtype`.
    ///
    /// # Errors
    /// When the adapter changes nothing, is rounded to nothing, or a value does not fit `dtype`.
    pub fn to_record(&self, dtype: Dtype) -> Result<Vec<u8>, AdapterError> {
        if self.changes_nothing() {
            return Err(AdapterError::ChangesNothing);
        }
        let bytes = self.encoded(dtype, true)?;
        let nothing = |part: record::Part<'_>| {
            let kind = kind_of(part.header()).expect("it was written from a kind");
            let values = |point: record::Point<'_>| point.tensors().map(|t| t.values().collect()).collect::<Vec<_>>();
            part.points().all(|point| kind.changes_nothing(&values(point)))
        };
        if Record::decode(&bytes)?.parts().all(nothing) {
            Err(AdapterError::RoundsToNothing { dtype })
        } else {
            Ok(bytes)
        }
    }

    /// What its record takes with values of `dtype` (bytes), whatever the values are.
    ///
    /// # Errors
    /// When it is larger than a record may be.
    pub fn record_bytes(&self, dtype: Dtype) -> Result<usize, AdapterError> {
        Ok(self.encoded(dtype, false)?.len())
    }

    /// The bytes of the record; all zero unless they are wanted.
    fn encoded(&self, dtype: Dtype, wanted: bool) -> Result<Vec<u8>, AdapterError> {
        let grouped: Vec<Vec<Vec<Grouped>>> =
            self.parts.iter().map(|part| part.points.iter().map(|point| grouped(part.kind, point)).collect()).collect();
        let tensors: Vec<Vec<Vec<TensorValues<'_>>>> =
            grouped.iter().map(|part| part.iter().map(|point| tensors(point)).collect()).collect();
        let mut points: Vec<Vec<PointValues<'_>>> = self
            .parts
            .iter()
            .zip(&tensors)
            .map(|(part, tensors)| {
                let points = part.points.iter().zip(tensors);
                points.map(|(point, tensors)| PointValues { path: &point.path, tensors }).collect()
            })
            .collect();
        let mut parts: Vec<PartValues<'_, '_>> = self
            .parts
            .iter()
            .zip(&mut points)
            .map(|(part, points)| PartValues { header: header(part, dtype), points })
            .collect();
        let mut bytes = vec![0; encoded_len(&parts)?];
        if wanted {
            encode(self.base(), &mut parts, &mut bytes)?;
        }
        Ok(bytes)
    }
}

fn tensors(grouped: &[Grouped]) -> Vec<TensorValues<'_>> {
    grouped.iter().map(|(groups, values)| TensorValues { values, groups: *groups }).collect()
}

fn header(part: &Part, dtype: Dtype) -> PartHeader {
    let Settings { rank, alpha, rslora } = part.settings;
    PartHeader { kind: part.kind.id(), dtype, rslora, rank, alpha }
}

fn kind_of(header: &PartHeader) -> Result<&'static dyn AdapterKind, RecordError> {
    let kind = KINDS.iter().copied().find(|kind| kind.id() == header.kind);
    kind.ok_or(RecordError::UnknownKind { kind: header.kind })
}

fn read_part(base: &Base, part: &record::Part<'_>, version: u8) -> Result<Part, AdapterError> {
    let header = *part.header();
    let kind = kind_of(&header)?;
    let settings = Settings { rank: header.rank, alpha: header.alpha, rslora: header.rslora };
    let sites: HashMap<PathHash, Site> =
        kind.sites(base).into_iter().map(|site| (PathHash::of(&site.path), site)).collect();
    let sites = part
        .points()
        .map(|point| sites.get(&point.path).cloned().ok_or(AdapterError::UnknownPoint { path: point.path }))
        .collect::<Result<Vec<_>, _>>()?;
    let mut read = Part::new(base, kind, settings, &sites, |site, _| {
        let found = part.point(&site.path).expect("it was found by this path");
        Ok(found.tensors().map(|tensor| tensor.values().collect()).collect())
    })?;
    // Version 1 has them in the shapes of the exported file.
    if version > 1 {
        for point in &mut read.points {
            for (i, (parameter, values)) in point.insertion.parameters.iter().zip(&mut point.tensors).enumerate() {
                *values = from_groups(values, &parameter.shape, kind.scale_axis(i, &parameter.shape));
            }
        }
    }
    Ok(read)
}

/// A tensor as a record has it: the number of its groups, and the values group by group.
type Grouped = (usize, Vec<f32>);

fn grouped(kind: &dyn AdapterKind, point: &AdapterPoint) -> Vec<Grouped> {
    let tensors = point.parameters().iter().zip(&point.tensors).enumerate();
    tensors
        .map(|(i, (parameter, values))| {
            let axis = kind.scale_axis(i, &parameter.shape);
            (groups(&parameter.shape, axis), to_groups(values, &parameter.shape, axis))
        })
        .collect()
}
