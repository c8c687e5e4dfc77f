"""Instructions of U-MARVEL (arXiv:2507.14902): M-BEIR's own (UniIR, arXiv:2311.17136), of which it draws one a row.

Four paraphrases a dataset and task, none on the target side. Keys are M-BEIR's names: dataset_task.
"""

from __future__ import annotations

from .instructions import Instructions

_PARAGRAPH = "I want to find a paragraph from Wikipedia that answers my question about this image."
_PAIR = "Retrieve a Wikipedia image-description pair that provides evidence for the question of this image."
_SUBJECT = "I want to find an image and subject description from Wikipedia that answers my question about this image."

U_MARVEL = Instructions(
    query={
        "visualnews_task0": (
            "Identify the news-related image in line with the described event.",
            "Display an image that best captures the following caption from the news.",
            "Based on the caption, provide the most fitting image for the news story.",
            "I want you to retrieve an image of this news caption.",
        ),
        "mscoco_task0": (
            "Find me an everyday image that matches the given caption.",
            "Identify the image showcasing the described everyday scene.",
            "I want to retrieve an image of this daily life description.",
            "Show me an image that best captures the following common scene description.",
        ),
        "fashion200k_task0": (
            "Based on the following fashion description, retrieve the best matching image.",
            "Match the provided description to the correct fashion item photo.",
            "Identify the fashion image that aligns with the described product.",
            "You need to identify the image that corresponds to the fashion product description provided.",
        ),
        "webqa_task1": (
            "Retrieve passages from Wikipedia that provide answers to the following question.",
            "You have to find a Wikipedia paragraph that provides the answer to the question.",
            "I want to find an answer to the question. Can you find some snippets that provide evidence from "
            "Wikipedia?",
            "I'm looking for a Wikipedia snippet that answers this question.",
        ),
        "edis_task2": (
            "Find a news image that matches the provided caption.",
            "Identify the news photo for the given caption.",
            "Can you pair this news caption with the right image?",
            "I'm looking for an image that aligns with this news caption.",
        ),
        "webqa_task2": (
            "Find a Wikipedia image that answers this question.",
            "Provide with me an image from Wikipedia to answer this question.",
            "I want to know the answer to this question. Please find the related Wikipedia image for me.",
            "You need to retrieve an evidence image from Wikipedia to address this question.",
        ),
        "visualnews_task3": (
            "Find a caption for the news in the given photo.",
            "Based on the shown image, retrieve an appropriate news caption.",
            "Provide a news-related caption for the displayed image.",
            "I want to know the caption for this news image.",
        ),
        "mscoco_task3": (
            "Find an image caption describing the following everyday image.",
            "Retrieve the caption for the displayed day-to-day image.",
            "Can you find a caption talking about this daily life image?",
            "I want to locate the caption that best describes this everyday scene image.",
        ),
        "fashion200k_task3": (
            "Find a product description for the fashion item in the image.",
            "Based on the displayed image, retrieve the corresponding fashion description.",
            "Can you retrieve the description for the fashion item in the image?",
            "I want to find a matching description for the fashion item in this image.",
        ),
        "nights_task4": (
            "Find a day-to-day image that looks similar to the provided image.",
            "Which everyday image is the most similar to the reference image?",
            "Find a daily life image that is identical to the given one.",
            "You need to identify the common scene image that aligns most with this reference image.",
        ),
        "oven_task6": (
            "Retrieve a Wikipedia paragraph that provides an answer to the given query about the image.",
            "Determine the Wikipedia snippet that identifies the visual entity in the image.",
            _PARAGRAPH,
            "You have to find a Wikipedia segment that identifies this image's subject.",
        ),
        "infoseek_task6": (
            "Retrieve a Wikipedia paragraph that provides an answer to the given query about the image.",
            "Determine the Wikipedia snippet that matches the question of this image.",
            _PARAGRAPH,
            "You have to find a Wikipedia segment that answers the question about the displayed image.",
        ),
        "fashioniq_task7": (
            "Find a fashion image that aligns with the reference image and style note.",
            "With the reference image and modification instructions, find the described fashion look.",
            "Given the reference image and design hint, identify the matching fashion image.",
            "I'm looking for a similar fashion product image with the described style changes.",
        ),
        "cirr_task7": (
            "Retrieve a day-to-day image that aligns with the modification instructions of the provided image.",
            "Pull up a common scene image like this one, but with the modifications I asked for.",
            "Can you help me find a daily image that meets the modification from the given image?",
            "I'm looking for a similar everyday image with the described changes.",
        ),
        "oven_task8": (
            _PAIR,
            "Determine the Wikipedia image-snippet pair that clarifies the entity in this picture.",
            _SUBJECT,
            "I want to know the subject in the photo. Can you provide the relevant Wikipedia section and image?",
        ),
        "infoseek_task8": (  # the fourth is in no text that we could read
            _PAIR,
            "Determine the Wikipedia image-snippet pair that matches my question about this image.",
            _SUBJECT,
        ),
    }
)
