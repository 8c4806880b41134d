"""Programs as the documents of scientific libraries write them, with data of some dozen megabytes.

Each is a script of its own, which prints a digest of every result: `RESULTS` goes before it.
"""

from __future__ import annotations

RESULTS = """
import hashlib
import numpy as np

def results(*arrays):
    for array in arrays:
        array = np.ascontiguousarray(array)
        digest, flat = hashlib.sha256(), array.reshape(-1)
        for first in range(0, len(flat), 1 << 16):
            digest.update(flat[first:first + (1 << 16)].tobytes())
        print(array.dtype, array.shape, digest.hexdigest())
"""

#: The library each needs, by the names in `needs.py`, and its text.
APPLICATIONS = {
    # https://scikit-learn.org/stable/getting_started.html, and the guide to pipelines.
    "sklearn": """
from sklearn.cluster import MiniBatchKMeans
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

X, y = make_classification(n_samples=60_000, n_features=64, n_informative=20, random_state=0)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
pipeline = make_pipeline(StandardScaler(), PCA(n_components=16, random_state=0), Ridge())
pipeline.fit(X_train, y_train)
boosted = HistGradientBoostingClassifier(max_iter=5, random_state=0).fit(X_train, y_train)
means = MiniBatchKMeans(n_clusters=8, n_init=1, random_state=0).fit(X)
results(pipeline.predict(X_test), boosted.predict_proba(X_test), means.cluster_centers_)
""",
    # The tutorials of scipy.ndimage, scipy.signal, scipy.sparse.linalg and scipy.spatial.
    "scipy": """
from scipy import fft, linalg, ndimage, signal, sparse, spatial
from scipy.sparse.linalg import cg

rng = np.random.default_rng(0)
image = rng.standard_normal((1500, 1500))
smooth = ndimage.gaussian_filter(image, sigma=3)
labels, count = ndimage.label(smooth > 0.05)
spectrum = fft.rfft2(image)
convolved = signal.fftconvolve(image, np.outer(*[signal.windows.gaussian(70, 8)] * 2), mode="same")
tree = spatial.KDTree(rng.random((100_000, 3)))
distances, neighbours = tree.query(rng.random((20_000, 3)), k=4)
n = 200_000
laplacian = sparse.diags_array([-1, 2.1, -1], offsets=[-1, 0, 1], shape=(n, n), format="csr")
solution, _ = cg(laplacian, np.ones(n), rtol=1e-8)
svals = linalg.svdvals(image[:300, :300])
results(smooth, labels, spectrum, convolved, distances, neighbours, solution, svals)
""",
    # The gallery: denoising, watershed segmentation, histogram equalization, measuring of regions.
    "skimage": """
from skimage import data, exposure, feature, filters, measure, restoration, segmentation, transform
from scipy import ndimage

image = data.binary_blobs(length=1200, blob_size_fraction=0.02, rng=0).astype(float)
noisy = image + 0.2 * np.random.default_rng(0).standard_normal(image.shape)
denoised = restoration.denoise_tv_chambolle(noisy, weight=0.1, max_num_iter=10)
equalized = exposure.equalize_adapthist(np.clip(denoised, 0, 1), clip_limit=0.03)
edges = filters.sobel(denoised)
binary = denoised > filters.threshold_otsu(denoised)
distance = ndimage.distance_transform_edt(binary)
peaks = feature.peak_local_max(distance, min_distance=10, labels=measure.label(binary))
markers = np.zeros(distance.shape, dtype=bool)
markers[tuple(peaks.T)] = True
labels = segmentation.watershed(-distance, measure.label(markers), mask=binary)
rotated = transform.rotate(denoised, 30)
areas = np.array([region.area for region in measure.regionprops(labels)])
results(denoised, equalized, edges, distance, labels, rotated, areas)
""",
    # https://www.statsmodels.org/stable/examples: OLS, GLM, and robust covariances.
    "statsmodels": """
import statsmodels.api as sm

rng = np.random.default_rng(0)
X = sm.add_constant(rng.standard_normal((120_000, 24)))
beta = rng.standard_normal(25)
y = X @ beta + rng.standard_normal(len(X))
ols = sm.OLS(y, X).fit()
robust = ols.get_robustcov_results(cov_type="HC1")
binary = (rng.random(len(X)) < 1 / (1 + np.exp(-X @ beta / 5))).astype(float)
glm = sm.GLM(binary, X, family=sm.families.Binomial()).fit()
smooth = sm.nonparametric.lowess(y[:3000], X[:3000, 1])
results(ols.params, ols.resid, robust.bse, glm.params, glm.fittedvalues, smooth)
""",
    # https://pandas.pydata.org/docs/user_guide/10min.html, and the guides to grouping and merging.
    "pandas": """
import pandas as pd

rng = np.random.default_rng(0)
n = 500_000
index = pd.date_range("2013-01-01", periods=n, freq="min")
df = pd.DataFrame(rng.standard_normal((n, 8)), index=index, columns=list("ABCDEFGH"))
df["key"] = rng.integers(1000, size=n)
df.iloc[::7, 2] = np.nan
filled = df.fillna(value=5)
grouped = filled.groupby("key")[["A", "C"]].agg(["mean", "std", "max"])
right = pd.DataFrame({"key": np.arange(1000), "weight": rng.random(1000)})
merged = pd.merge(filled, right, on="key")
rolled = filled["B"].rolling(120).mean()
resampled = filled.resample("D").sum()
ordered = merged.sort_values(by=["key", "B"])
pivot = pd.pivot_table(merged, values="D", index=merged["key"] % 50, columns=merged["key"] // 100)
results(filled.to_numpy(), grouped.to_numpy(), ordered.to_numpy(), rolled.to_numpy())
results(resampled.to_numpy(), pivot.to_numpy(), df.describe().to_numpy())
""",
}

#: What has examples in its docstrings, in the packages as they are installed, by library.
DOCSTRINGS = {
    "scipy": ["scipy.signal.fftconvolve", "scipy.signal.welch", "scipy.ndimage._morphology"],
    "sklearn": ["sklearn.decomposition._pca", "sklearn.cluster._kmeans", "sklearn.manifold._t_sne"],
    "skimage": ["skimage.restoration._denoise", "skimage.morphology.gray"],
    "statsmodels": [
        "statsmodels.genmod.generalized_linear_model",
        "statsmodels.nonparametric.kde",
        "statsmodels.regression.linear_model",
    ],
    "pandas": [
        "pandas.api.typing.DataFrameGroupBy",
        "pandas.api.typing.Rolling",
        "pandas.cut",
        "pandas.merge",
    ],
}
