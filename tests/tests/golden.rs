//! Golden runs on the CPU, against PyTorch + PEFT. `conformance::golden` says what is compared.

use conformance::golden::{self, Tolerances, Weights};

macro_rules! goldens {
    ($($names:ident as $bases:tt),* $(,)?) => {
        $(goldens! { @each $names $bases })*

        #[test]
        fn every_run_is_tested() {
            let names: Vec<String> = golden::all().into_iter().map(|run| run.name).collect();
            assert_eq!(names, [$(stringify!($names)),*]);
        }
    };
    (@each $name:ident { $($test:ident: $weights:ident),* }) => {
        mod $name {
            use super::*;

            $(#[test]
            fn $test() {
                golden::check(stringify!($name), Weights::$weights, "cpu", Tolerances::CPU);
            })*
        }
    };
}

goldens! {
    mlp as { f32: F32, int8: Int8 },
    mlp_sgd as { f32: F32, int8: Int8 },
    mlp_rslora as { f32: F32, int8: Int8 },
    mlp_cosine_clip as { f32: F32, int8: Int8 },
    mlp_linear_rank1 as { f32: F32, int8: Int8 },
    seq_mlp_mse as { f32: F32, int8: Int8 },
    cnn as { f32: F32, int8: Int8 },
    cnn_bn as { f32: F32, int8: Int8 },
    encoder as { f32: F32, int8: Int8 },
    encoder_all as { f32: F32, int8: Int8 },
    tiny_llama as { f32: F32, int8: Int8 },
    mlp_int4 as { int4: Int4, int4_qdq: Int4Qdq },
    encoder_int4 as { int4: Int4, int4_qdq: Int4Qdq },
    small_mobile as { f32: F32, int8: Int8 },
}
