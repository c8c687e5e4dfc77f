"""Instructions of QZhou-Embedding (arXiv:2508.21632) by MTEB dataset, English and Chinese.

The texts are those of Kingsoft-LLM/QZhou-Embedding: task_to_instructions_v2.json and run_cmteb_all.py. Retrieval tells
the query side alone; where both sides are alike (STS, pairs, classes, clusters, reranking), both are told. Its frame is
Template(instruct="front", frame="Instruct: {instruction}\\nQuery: ", separator="").
"""

from __future__ import annotations

from .instructions import Instructions

# Text: the datasets whose queries it is for.
_QUERY: dict[str, str] = {
    "Given a claim about climate change, retrieve documents that support or refute the claim": (
        "ClimateFEVERHardNegatives"
    ),
    "Given a claim, retrieve documents that support or refute the claim": "FEVERHardNegatives",
    "Given a financial question, retrieve user replies that best answer the question": "FiQA2018",
    "Given a multi-hop question, retrieve documents that can help answer the question": "HotpotQAHardNegatives",
    "Given a scientific paper title, retrieve paper abstracts that are cited by the given paper": "SCIDOCS",
    "Given a query on COVID-19, retrieve documents that answer the query": "TRECCOVID",
    "Given a question, retrieve detailed and persuasive arguments that answer the question": "Touche2020Retrieval.v3",
    "Given a user query from an e-commerce website, retrieve description sentences of relevant products": (
        "EcomRetrieval"
    ),
    "Given a medical question, retrieve user replies that best answer the question": "MedicalRetrieval",
    "Given a Chinese search query, retrieve web passages that answer the question": "T2Retrieval DuRetrieval",
    "Given a Chinese community medical question, retrieve replies that best answer the question": "CmedqaRetrieval",
    "Given a question on COVID-19, retrieve news articles that answer the question": "CovidRetrieval",
    "Given a web search query, retrieve relevant passages that answer the query": "MMarcoRetrieval",
    "Given a video search query, retrieve the titles of relevant videos": "VideoRetrieval",
}

# Text: the datasets whose Items it is for, on either side.
_BOTH: dict[str, str] = {
    "Classify a given Amazon customer review text as either counterfactual or not-counterfactual": (
        "AmazonCounterfactualClassification"
    ),
    "Identify the main and secondary category of Arxiv papers based on the titles and abstracts": (
        "ArXivHierarchicalClusteringP2P"
    ),
    "Identify the main and secondary category of Arxiv papers based on the titles": "ArXivHierarchicalClusteringS2S",
    "Given a claim, find documents that refute the claim": "ArguAna",
    "Retrieve duplicate questions from AskUbuntu forum": "AskUbuntuDupQuestions",
    "Retrieve semantically similar text": (
        "BIOSSES SICK-R STS12 STS13 STS14 STS15 STS17 STS22.v2 STSBenchmark SummEvalSummarization.v2 ATEC BQ "
        "LCQMC PAWSX STSB AFQMC QBQTC"
    ),
    "Given a online banking query, find the corresponding intents": "Banking77Classification",
    "Identify the main category of Biorxiv papers based on the titles and abstracts": "BiorxivClusteringP2P.v2",
    "Given a question, retrieve detailed question descriptions from Stackexchange that are duplicates to the given "
    "question": "CQADupstackGamingRetrieval CQADupstackUnixRetrieval",
    "Classify the sentiment expressed in the given movie review text from the IMDB dataset": "ImdbClassification",
    "Classify the intent domain of the given utterance in task-oriented conversation": "MTOPDomainClassification",
    "Given a user utterance as query, find the user intents": "MassiveIntentClassification",
    "Given a user utterance as query, find the user scenarios": "MassiveScenarioClassification",
    "Identify the main category of Medrxiv papers based on the titles and abstracts": "MedrxivClusteringP2P.v2",
    "Identify the main category of Medrxiv papers based on the titles": "MedrxivClusteringS2S.v2",
    "Retrieve relevant news articles based on user browsing history": "MindSmallReranking",
    "Retrieve duplicate questions from Sprint forum": "SprintDuplicateQuestions",
    "Identify the topic or theme of StackExchange posts based on the titles": "StackExchangeClustering.v2",
    "Identify the topic or theme of StackExchange posts based on the given paragraphs": "StackExchangeClusteringP2P.v2",
    "Classify the given comments as either toxic or not toxic": "ToxicConversationsClassification",
    "Classify the sentiment of a given tweet as either positive, negative, or neutral": (
        "TweetSentimentExtractionClassification"
    ),
    "Identify the topic or theme of the given news articles": "TwentyNewsgroupsClustering.v2",
    "Retrieve tweets that are semantically similar to the given tweet": "TwitterSemEval2015 TwitterURLCorpus",
    "Given a Chinese community medical question, retrieve replies that best answer the question": (
        "CMedQAv1-reranking CMedQAv2-reranking"
    ),
    "Classify the fine-grained category of the given news title": "TNews",
    "Given an App description text, find the appropriate fine-grained category": "IFlyTek",
    "Classify sentiment of the customer review into positive, neutral, or negative": "MultilingualSentiment",
    "Classify the customer review for iPhone on e-commerce platform into positive or negative": "JDReview",
    "Classify the customer review for online shopping into positive or negative": "OnlineShopping",
    "Classify the customer review from a food takeaway platform into positive or negative": "Waimai",
    "Retrieve semantically similar text.": "Ocnli Cmnli",
    "Identify the main category of scholar papers based on the titles and abstracts": "CLSClusteringP2P",
    "Identify the main category of scholar papers based on the titles": "CLSClusteringS2S",
    "Identify the topic or theme of the given news articles based on the titles": "ThuNewsClusteringS2S",
    "Given a Chinese search query, retrieve web passages that answer the question": "MMarcoReranking T2Reranking",
    "Identify the topic or theme of the given news articles based on the titles and contents": "ThuNewsClusteringP2P",
}


def _by_dataset(*tables: dict[str, str]) -> dict[str, tuple[str, ...]]:
    return {name: (text,) for table in tables for text, names in table.items() for name in names.split()}


# What stands for a whole kind of task: the text of the model card's example, and that of nearly all STS.
_SEARCH = ("Given a web search query, retrieve relevant passages that answer the query",)
_ALIKE = ("Retrieve semantically similar text",)

QZHOU = Instructions(
    query={**_by_dataset(_QUERY, _BOTH), "retrieval": _SEARCH, "sts": _ALIKE},
    target={**_by_dataset(_BOTH), "sts": _ALIKE},
)
