"""Instructions of VLM2Vec by dataset: MMEB's pictures (arXiv:2410.05160), MMEB-V2's clips and pages (arXiv:2507.04590).

The texts are those of TIGER-AI-Lab/VLM2Vec (src/data) and, for pictures, of the rows of MMEB-train and of
MMEB_Test_Instruct. The two training sets of pages were trained without instructions or with others by sub-source; they
have the benchmark's here.
"""

from __future__ import annotations

from .convert.mmeb_texts import TASKS
from .instructions import Instructions


def _each(names: str, text: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(names.split(), (text,))


_VIDEO_QA = "Video-MME NExTQA EgoSchema MVBench ActivityNetQA"
_VIDEOS = "MSR-VTT MSVD DiDeMo VATEX YouCook2 video_caption_300k QVHighlight Charades-STA"
_PAGES = " ".join(
    [
        "colpali_train_set VisRAG-Ret-Train-In-domain-data ViDoSeek-page ViDoSeek-doc MMLongBench-page MMLongBench-doc",
        "ViDoRe_arxivqa ViDoRe_docvqa ViDoRe_infovqa ViDoRe_tabfquad ViDoRe_tatdqa ViDoRe_shiftproject",
        "ViDoRe_syntheticDocQA_artificial_intelligence ViDoRe_syntheticDocQA_energy",
        "ViDoRe_syntheticDocQA_government_reports ViDoRe_syntheticDocQA_healthcare_industry",
        "ViDoRe_esg_reports_human_labeled_v2 ViDoRe_esg_reports_v2 ViDoRe_esg_reports_v2_multilingual",
        "ViDoRe_biomedical_lectures_v2 ViDoRe_biomedical_lectures_v2_multilingual",
        "ViDoRe_economics_reports_v2 ViDoRe_economics_reports_v2_multilingual",
        "VisRAG_ArxivQA VisRAG_ChartQA VisRAG_MP-DocVQA VisRAG_SlideVQA VisRAG_InfoVQA VisRAG_PlotQA",
    ]
)

VLM2VEC = Instructions(
    query={
        **{name: (task.query,) for name, task in TASKS.items()},  # the sets of MMEB-train
        **_each("ImageNet-1K ImageNet-A ImageNet-R", TASKS["ImageNet_1K"].query),
        **_each("ObjectNet", TASKS["VOC2007"].query),
        **_each("Place365", TASKS["SUN397"].query),
        **_each("Country211", "Identify the country depicted in the image"),
        **_each("ScienceQA VizWiz GQA TextVQA", TASKS["OK-VQA"].query),
        **_each("EDIS", "Find a news image that matches the provided caption:"),
        **_each("Wiki-SS-NQ", "Find the document image that can answer the given query:"),
        "OVEN": ("Retrieve a Wikipedia image-description pair that provides evidence for the question of this image:",),
        **_each("FashionIQ", "Find an image to match the fashion image and style note:"),
        **_each("RefCOCO", "Select the portion of the image that follows the language expressions."),
        **_each("RefCOCO-Matching", "Select the portion of the image that follows the language expressions:"),
        **_each("Visual7W-Pointing", "Select the portion of the image that answers the question"),
        **_each("K700 Kinetics-700", "Recognize the category of the video content."),
        "SmthSmthV2": ("What actions or object interactions are being performed by the person in the video?",),
        **_each("UCF101", "What activities or sports are being performed by the person in the video?"),
        **_each("HMDB51", "What actions or objects interactions are the person in the video doing?"),
        **_each("Breakfast", "Recognize the breakfast type that the person is cooking in the video."),
        **_each(
            _VIDEO_QA,
            "Given a video and a question, select the most accurate answer from the provided candidates. Return only "
            "the exact text of your chosen answer. Question:",
        ),
        **_each("video_qa_240k", "Answer a question based on the content of a video."),
        **_each("MSR-VTT video_caption_300k", "Find a video that contains the following visual content:"),
        **_each("MSVD", "Find the video snippet that corresponds to the given summary:"),
        **_each("DiDeMo", "Find a video that includes the following described scenes:"),
        **_each("VATEX", "Select a video that fits the description provided:"),
        **_each("YouCook2", "Find a video that demonstrates the following action while making a recipe:"),
        **_each(
            "QVHighlight Charades-STA", "Find the clip that corresponds to the described scene in the given video:"
        ),
        **_each("MomentSeeker", "Find the clip that corresponds to the given text:"),  # of queries of text alone
        **_each(_PAGES, "Find a document image that matches the given query:"),
    },
    target={
        **_each("VisDial MSCOCO_t2i VisualNews_t2i CIRR NIGHTS FashionIQ", "Represent the given image."),
        **_each("WebQA OVEN", "Represent the given Wikipedia image with related text information."),
        **_each("EDIS", "Represent the given image with related text information."),
        **_each("Wiki-SS-NQ", "Represent the given document screenshot."),
        **_each("MSCOCO RefCOCO Visual7W-Pointing", "Represent the given cropped image of the object."),
        **_each("RefCOCO-Matching", "Select the portion of the image that follows the language expressions:"),
        **_each(_VIDEOS, "Understand the content of the provided video."),
        **_each("MomentSeeker", "Understand the content of the provided video clip."),
        **_each(_PAGES, "Understand the content of the provided document image."),
    },
)
