import CoreML
import CoreVideo
import Foundation
import TinyViTKit
import Vision

/// Which processors Core ML may use.
enum ComputeUnits: String, CaseIterable, Identifiable, Sendable {
    case all, cpuOnly, cpuAndGPU, cpuAndNeuralEngine

    var id: Self { self }

    var label: String {
        switch self {
        case .all: "All"
        case .cpuOnly: "CPU"
        case .cpuAndGPU: "CPU + GPU"
        case .cpuAndNeuralEngine: "CPU + Neural Engine"
        }
    }

    var coreML: MLComputeUnits {
        switch self {
        case .all: .all
        case .cpuOnly: .cpuOnly
        case .cpuAndGPU: .cpuAndGPU
        case .cpuAndNeuralEngine: .cpuAndNeuralEngine
        }
    }
}

/// A loaded Core ML package. The actor gives it one call at a time, off the main thread.
actor CoreMLClassifier: ImageClassifier {
    private let model: MLModel
    private let bundle: ModelBundle
    private let vision: VNCoreMLModel?

    /// Loads the compiled package of a bundle.
    ///
    /// - Throws: what Core ML throws of a package that this system cannot run.
    init(bundle: ModelBundle, compiled: URL, units: ComputeUnits) throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units.coreML
        model = try MLModel(contentsOf: compiled, configuration: configuration)
        self.bundle = bundle
        // Vision hands over images, so it has nothing for an artifact that takes a tensor.
        vision = bundle.manifest.inputKind == .image ? try VNCoreMLModel(for: model) : nil
    }

    // Not `async`: the synchronous prediction of Core ML, which blocks this actor and no other.
    func logits(_ input: ModelInput) throws -> [Float] {
        let manifest = bundle.manifest
        let features = try MLDictionaryFeatureProvider(
            dictionary: [manifest.inputName: input.feature])
        let outputs = try model.prediction(from: features)
        guard let logits = outputs.featureValue(for: manifest.outputName)?.multiArrayValue else {
            throw BundleError("\(bundle.name): no output '\(manifest.outputName)'; export again")
        }
        return MLShapedArray<Float>(converting: logits).scalars
    }

    /// Whether `classifyWithVision` can be called.
    var takesImages: Bool { vision != nil }

    /// Lets Vision scale the photo: faster, but the pixels are Vision's, not the contract's.
    func classifyWithVision(_ photo: RgbImage, count: Int) throws -> [Prediction] {
        guard let vision else {
            throw BundleError("\(bundle.name): takes a tensor; Vision needs a package of an image")
        }
        let request = VNCoreMLRequest(model: vision)
        request.imageCropAndScaleOption =
            bundle.preprocessing.mode == .squash ? .scaleFill : .centerCrop
        try VNImageRequestHandler(cvPixelBuffer: photo.pixelBuffer()).perform([request])
        let classes = request.results as? [VNClassificationObservation] ?? []
        return classes.prefix(count).map {
            Prediction(label: $0.identifier, probability: $0.confidence)
        }
    }
}

extension ModelInput {
    fileprivate var feature: MLFeatureValue {
        get throws {
            switch self {
            case .image(let image):
                return MLFeatureValue(pixelBuffer: try image.pixelBuffer())
            case .tensor(let tensor):
                let side = Int(Double(tensor.count / RgbImage.channels).squareRoot())
                let array = MLShapedArray<Float>(
                    scalars: tensor, shape: [1, RgbImage.channels, side, side])
                return MLFeatureValue(shapedArray: array)
            }
        }
    }
}

extension RgbImage {
    /// The same pixels as BGRA, the layout that Core ML and Vision take without a conversion.
    func pixelBuffer() throws -> CVPixelBuffer {
        var created: CVPixelBuffer?
        let attributes = [kCVPixelBufferIOSurfacePropertiesKey: [:] as CFDictionary] as CFDictionary
        let status = CVPixelBufferCreate(
            nil, width, height, kCVPixelFormatType_32BGRA, attributes, &created)
        guard status == kCVReturnSuccess, let buffer = created else {
            throw BundleError("no memory for \(width) x \(height) pixels (\(status))")
        }
        CVPixelBufferLockBaseAddress(buffer, [])
        defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
        guard let base = CVPixelBufferGetBaseAddress(buffer) else {
            throw BundleError("no memory for \(width) x \(height) pixels")
        }
        let bytesPerRow = CVPixelBufferGetBytesPerRow(buffer)
        for y in 0..<height {
            let row = base.advanced(by: y * bytesPerRow).assumingMemoryBound(to: UInt8.self)
            for x in 0..<width {
                let from = (y * width + x) * Self.channels
                row[4 * x] = pixels[from + 2]
                row[4 * x + 1] = pixels[from + 1]
                row[4 * x + 2] = pixels[from]
                row[4 * x + 3] = 255
            }
        }
        return buffer
    }
}
