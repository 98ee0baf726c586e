"""What is inside a wrapper."""

from peft import LoraConfig, get_peft_model

from samparser.sam import image_processor, plain_model


def test_the_model_and_the_image_processor_are_found_inside_their_wrappers(tiny_sam, tiny_processor):
    model = get_peft_model(tiny_sam, LoraConfig(target_modules=["conv1"], r=2))
    assert plain_model(model) is plain_model(tiny_sam) is tiny_sam
    images = image_processor(tiny_processor)
    assert image_processor(images) is images is tiny_processor.image_processor
