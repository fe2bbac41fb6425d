# docker build -t carvana .    How to run it: docs/kaggle-colab-docker.md
FROM python:3.12-slim

# torch.compile needs a C++ compiler; Python's headers are in the image.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

WORKDIR /carvana
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .

# train.sh and predict.sh use this Python instead of making .venv.
ENV PYTHON=/usr/local/bin/python
CMD ["bash", "train.sh", "help"]
