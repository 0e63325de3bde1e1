//! Golden runs on the CPU, against PyTorch + PEFT. `conformance::golden` says what is compared.

use conformance::golden::{self, Tolerances, Weights};

macro_rules! goldens {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            use super::*;

            #[test]
            fn f32() {
                golden::check(stringify!($name), Weights::F32, "cpu", Tolerances::CPU);
            }

            #[test]
            fn int8() {
                golden::check(stringify!($name), Weights::Int8, "cpu", Tolerances::CPU);
            }
        })*

        #[test]
        fn every_run_is_tested() {
            let names: Vec<String> = golden::all().into_iter().map(|run| run.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

goldens! {
    mlp,
    mlp_sgd,
    mlp_rslora,
    mlp_cosine_clip,
    mlp_linear_rank1,
    seq_mlp_mse,
    cnn,
    cnn_bn,
    encoder,
    encoder_all,
    tiny_llama,
}
