"""PEFT knows the tuner after one import, and only then."""

import pickle
import subprocess
import sys

import peft
import pytest
import transformers
from packaging.version import Version
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from torch.autograd import forward_ad
from transformers.integrations import peft as transformers_peft

from samparser.tuner import SVDCoefficientConfig, SVDCoefficientModel, registration
from tests.conftest import make_tiny_sam
from tests.tuner.models import make


def test_the_type_is_a_member_of_the_enumeration_in_every_way():
    member = PeftType.SVD_COEFFICIENT
    assert member is PeftType["SVD_COEFFICIENT"] is PeftType("SVD_COEFFICIENT")
    assert member in list(PeftType)
    assert (member.name, member.value, str.__str__(member)) == ("SVD_COEFFICIENT",) * 3
    assert pickle.loads(pickle.dumps(member)) is member


def test_the_tables_of_peft_hold_the_tuner():
    member = PeftType.SVD_COEFFICIENT
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member] is SVDCoefficientConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[member] is SVDCoefficientModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == "svd_coefficient_"


def test_registering_again_changes_nothing():
    before = list(PeftType)
    registration.register()
    registration.register()
    assert list(PeftType) == before


def test_a_name_that_another_method_holds_is_refused(monkeypatch):
    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, PeftType.SVD_COEFFICIENT, PeftConfig)
    with pytest.raises(RuntimeError, match=r"PeftConfig already holds SVD_COEFFICIENT.*peft>=0.2"):
        registration.register()


def test_a_peft_that_is_too_old_is_reported(monkeypatch):
    monkeypatch.delitem(PEFT_TYPE_TO_CONFIG_MAPPING, PeftType.SVD_COEFFICIENT)
    monkeypatch.setattr(registration, "BaseTuner", object)
    with pytest.raises(RuntimeError, match=r"what of its state is saved.*peft>=0.21"):
        registration.register()


def test_an_enumeration_that_cannot_be_extended_is_reported(monkeypatch):
    class Closed:
        __members__ = ()

        def __new__(cls, *args):
            raise TypeError("closed")

    monkeypatch.setattr(registration, "PeftType", Closed)
    with pytest.raises(RuntimeError, match="PeftType enumeration cannot be extended"):
        registration.add_peft_type()


def test_unpickling_a_model_in_a_fresh_process_registers_by_itself(tmp_path):
    model = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"]))
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps((model.peft_config, make("MLP").lin0)))
    code = (
        f"import pickle; configs, _ = pickle.loads(open({str(path)!r}, 'rb').read()); import peft; "
        "print(configs['default'].peft_type.value, 'SVD_COEFFICIENT' in peft.PeftType.__members__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["SVD_COEFFICIENT", "True"]


def test_where_transformers_asks_for_a_newer_peft_two_versions_that_work_are_named(monkeypatch):
    """Breaks where a release of transformers checks PEFT's version elsewhere: `wrap_version_check` goes there then."""
    monkeypatch.setattr(transformers_peft, "MIN_PEFT_VERSION", "99.0")
    sam = make_tiny_sam()
    with pytest.raises(ValueError, match=r">= 99.0. With peft .*pip install 'transformers<5.24' 'peft==0.21.\*'"):
        sam.add_adapter(LoraConfig(target_modules=["conv1"]))
    assert get_peft_model(sam, SVDCoefficientConfig()).active_adapters == ["default"]


def test_the_pair_of_versions_at_hand_is_the_one_that_the_message_is_about():
    pair = Version(transformers.__version__) >= Version("5.24") and Version(peft.__version__) < Version("0.22")
    sam = make_tiny_sam()
    if pair:
        with pytest.raises(ValueError, match=r"PeftModel.from_pretrained, which work"):
            sam.add_adapter(SVDCoefficientConfig())
    else:
        sam.add_adapter(SVDCoefficientConfig())
        assert sam.active_adapters() == ["default"]


@pytest.mark.parametrize(
    ("owner", "name", "what_breaks"),
    [
        (BaseTuner, "_get_adapter_state_dict", "saving without the base's record and the file's hash"),
        (BaseTuner, "_remap_adapter_state_dict_for_load", "loading names of compiled parts"),
        (BaseTuner, "_remove_adapter_name_from_key", "saving names of compiled parts"),
        (BaseTuner, "_cast_adapter_dtype", "coefficients are rounded with the model"),
        (BaseTuner, "_prepare_model", "damaged files are found after injection"),
        (BaseTuner, "_create_and_replace", "injection"),
        (PeftModel, "_enable_peft_forward_hooks", "batches with an adapter for each sample"),
        (transformers_peft, "check_peft_version", "the message on versions that go together"),
        (forward_ad, "_current_level", "forward-mode differentiation of a layer in its factored form"),
    ],
)
def test_names_that_are_not_public_are_there(owner, name, what_breaks):
    """Each is used in one file of samparser/tuner and has no public way: a release that lacks one is named here."""
    assert hasattr(owner, name), f"{owner.__name__}.{name} is gone: {what_breaks}"
