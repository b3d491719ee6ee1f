"""The layers found in checkpoints of timm and transformers are the models' own depthwise convolutions.

Of a few networks of each kind; `benchmarks/detection.py` looks at all.
"""

import re
import warnings
from importlib.util import find_spec

import numpy as np
import pytest

from dogfit.checkpoints import load_kernels
from dogfit.errors import InputError
from model_files import depthwise_modules, no_initialization, stub_torchvision, write_checkpoint

torch = pytest.importorskip("torch", reason="compares with PyTorch models")


def _check(model, path, expected_order=None):
    """Compare what is read from the model's checkpoint with the model's modules; return the kernel set."""
    modules = list(depthwise_modules(model).values())
    own = set(map(id, modules))
    # A module may be used at several places: its values appear under each name.
    module_of = {
        f"{name}.weight": module
        for name, module in model.named_modules(remove_duplicate=False)
        if id(module) in own
    }
    random = np.random.default_rng(0)
    taps_of = {id(m): random.normal(size=tuple(m.weight.shape)).astype(np.float32) for m in modules}
    values = {name: taps_of[id(module)] for name, module in module_of.items()}
    write_checkpoint(path, model.state_dict(), values)
    if not values:
        with pytest.raises(InputError, match="no depthwise layer"):
            load_kernels(path)
        return None
    kernels = load_kernels(path)
    for layer, taps in kernels.pairs():
        np.testing.assert_array_equal(taps, values[layer.name][:, 0], err_msg=layer.name)
        assert (layer.dtype, layer.channels) == ("F32", module_of[layer.name].out_channels)
    found = [id(module_of[layer.name]) for layer in kernels.layers]
    assert len(found) == len(modules)
    assert set(found) == own
    # Some modules do not run in every configuration; those that do must come in their order.
    order = [id(module) for module in (modules if expected_order is None else expected_order)]
    assert [module for module in found if module in set(order)] == order
    return kernels


def _run_order(model, shape):
    """The depthwise modules in the order of their first call."""
    called = {}

    def note(module, *_):
        called.setdefault(id(module), module)

    handles = [module.register_forward_hook(note) for module in depthwise_modules(model).values()]
    with torch.no_grad(), torch.device("meta"):
        model.eval()(torch.empty(2, *shape))
    for handle in handles:
        handle.remove()
    return list(called.values())


# timm's source files that define networks with depthwise convolutions. One architecture of each other
# file is built as well, to see that it has none.
DEPTHWISE_FILES = """
byobnet coat convmixer convnext cpubone csatv2 cspnet cspnext davit edgenext efficientformer_v2 efficientnet
efficientvim efficientvit_mit efficientvit_msra fastvit focalnet gcvit ghostnet hardcorenas hgnet iformer
inception_next lcnetv2 lowformer mambaout maxxvit metaformer mobilenetv3 mobilenetv5 mobilevit mvitv2 nasnet
pit pnasnet pvt_v2 rdnet repghost repvit rexnet shvit starnet swiftformer tiny_vit twins vitamin vovnet
xception xception_aligned xcit
""".split()
# Architectures tried of each file, spread evenly over their names; more where none of these has such layers.
MOST_OF_A_FILE = 5
# Their modules do not run in the order of definition.
ORDER_BY_RUNNING = ("coat", "efficientvim")


@pytest.fixture(scope="module")
def timm_files():
    """Source file of timm -> its architectures."""
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    with stub_torchvision(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm
    files = {}
    for name in timm.list_models():
        file = timm.model_entrypoint(name).__module__.rpartition(".")[2]
        files.setdefault(file, []).append(name)
    return files


def _create(name):
    import timm

    with no_initialization(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(name)


def _signature(model):
    return frozenset(re.sub(r"\d+", "#", name) for name in depthwise_modules(model))


@pytest.mark.slow
@pytest.mark.parametrize("file", DEPTHWISE_FILES)
def test_load_kernels_timm_architectures(timm_files, file, tmp_path):
    seen, checked, found = set(), set(), 0
    names = timm_files[file]
    step = -(-len(names) // MOST_OF_A_FILE)
    spread = [name for first in range(step) for name in names[first::step]]
    for tried, name in enumerate(spread):
        if found and tried >= MOST_OF_A_FILE:
            break
        model = _create(name)
        # Architectures that differ in padding or activation have the same checkpoint.
        state = tuple((key, tuple(tensor.shape)) for key, tensor in model.state_dict().items())
        if state in checked:
            continue
        checked.add(state)
        # Running on the meta device takes longer than all else: once for each pattern of names.
        new = _signature(model) not in seen
        seen.add(_signature(model))
        order = None
        if depthwise_modules(model) and (new or file in ORDER_BY_RUNNING):
            order = _run_order(model, model.default_cfg["input_size"])
        found += _check(model, tmp_path / f"{name}.safetensors", order) is not None
        (tmp_path / f"{name}.safetensors").unlink()
    assert found


@pytest.mark.slow
def test_load_kernels_other_timm_architectures(timm_files, tmp_path):
    for file in sorted(timm_files.keys() - set(DEPTHWISE_FILES)):
        model = _create(timm_files[file][0])
        assert _check(model, tmp_path / "model.safetensors") is None, file


TRANSFORMERS = """
convnext convnextv2 dinov3_convnext efficientnet mobilenet_v1 mobilenet_v2 mobilevitv2 focalnet segformer
pvt_v2 swiftformer cvt
""".split()


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_load_kernels_transformers_configurations(kind, tmp_path):
    if find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    with no_initialization(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoConfig, AutoModel

        model = AutoModel.from_config(AutoConfig.for_model(kind))
    kernels = _check(model, tmp_path / "model.safetensors", _run_order(model, (3, 224, 224)))
    assert kernels is not None
    if kind in ("convnext", "convnextv2", "dinov3_convnext"):
        depths = model.config.depths
        expected = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
        assert [(layer.stage, layer.block) for layer in kernels.layers] == expected
    else:
        blocks = [layer.block for layer in kernels.layers if layer.block is not None]
        assert len(blocks) >= len(kernels.layers) - 2
