"""What flan_t5_questions.py and phi_questions.py ask."""

dataset = [
    {  # Simple Translation
        "premise": "Translate from English to Spanish",
        "question": "The book is on the table.",
    },
    {  # Commonsense Reasoning
        "premise": "Answer the question using commonsense knowledge",
        "question": "Why can't a fish live out of water?",
    },
    {  # Creative Story Generation
        "premise": "Continue the story with a creative twist",
        "question": (
            "Once upon a time, in a forest far away, there was a small bear named Timmy who loved honey."
        ),
    },
    {  # Mathematical Problem Solving
        "premise": "Solve the mathematical problem",
        "question": "What is the square root of 144?",
    },
    {  # Fact-based Question Answering
        "premise": "Answer based on factual knowledge",
        "question": "Who was the first person to walk on the moon?",
    },
    {  # Conversational Continuation
        "premise": "Continue the conversation naturally",
        "question": "User: Can you help me with directions? Agent:",
    },
    {  # Conversational Continuation
        "premise": "Continue the conversation naturally",
        "question": (
            "User: Can you help me with directions? Agent: Sure, where to and where from?"
            " User: I'd like to get from LA to San Jose today. What's the best road? Agent: "
        ),
    },
]
