import Foundation

private let fractionBits = 22

extension RgbImage {
    /// Resizes as Pillow does, to the byte, and crops the centre.
    ///
    /// Only what the crop shows is computed, which changes no byte of it: each output pixel
    /// depends on its own taps alone.
    ///
    /// - Returns: S x S pixels.
    public func resizedAndCropped(_ contract: Preprocessing) -> RgbImage {
        let size = contract.size
        let stride = size * Self.channels
        let target = contract.resizedSize(width: width, height: height)
        let columns = taps(inputs: width, outputs: target.width, contract)
        let rows = taps(inputs: height, outputs: target.height, contract)
        let firstRow = rows.map(\.first).min() ?? 0
        let endRow = rows.map { $0.first + $0.weights.count }.max() ?? 0

        // 8 bits between the passes, as in Pillow: (endRow - firstRow, S, 3)
        var narrow = [UInt8](repeating: 0, count: (endRow - firstRow) * stride)
        pixels.withUnsafeBufferPointer { source in
            for y in firstRow..<endRow {
                for (x, tap) in columns.enumerated() {
                    for channel in 0..<Self.channels {
                        let from = (y * width + tap.first) * Self.channels + channel
                        narrow[(y - firstRow) * stride + x * Self.channels + channel] =
                            tap.sum(source, from: from, step: Self.channels)
                    }
                }
            }
        }
        var resized = [UInt8](repeating: 0, count: size * stride)
        narrow.withUnsafeBufferPointer { source in
            for (y, tap) in rows.enumerated() {
                for x in 0..<stride {
                    let from = (tap.first - firstRow) * stride + x
                    resized[y * stride + x] = tap.sum(source, from: from, step: stride)
                }
            }
        }
        return RgbImage(width: size, height: size, pixels: resized)
    }
}

/// The inputs of one output pixel along one axis: the first, and a fixed-point weight of each.
private struct Tap {
    let first: Int
    let weights: [Int32]

    func sum(_ samples: UnsafeBufferPointer<UInt8>, from: Int, step: Int) -> UInt8 {
        var sum: Int32 = 1 << Int32(fractionBits - 1)
        var at = from
        for weight in weights {
            sum += Int32(samples[at]) * weight
            at += step
        }
        return UInt8(clamping: sum >> Int32(fractionBits))
    }
}

/// Taps of the central S output pixels of an axis that is resized to `outputs` pixels.
private func taps(inputs: Int, outputs: Int, _ contract: Preprocessing) -> [Tap] {
    let radius = contract.interpolation == .bicubic ? 2.0 : 1.0
    let scale = Double(inputs) / Double(outputs)
    let stretch = max(scale, 1)
    let support = radius * stretch
    // Python's round((side - size) / 2): a half goes to the even integer.
    let offset = Int((Double(outputs - contract.size) / 2).rounded(.toNearestOrEven))
    return (offset..<offset + contract.size).map { index in
        let center = (Double(index) + 0.5) * scale
        let first = max(Int(center - support + 0.5), 0)
        let end = min(Int(center + support + 0.5), inputs)
        let weights = (first..<end).map { input in
            weight(
                (Double(input) - center + 0.5) * (1 / stretch), contract.interpolation)
        }
        let total = weights.reduce(0, +)
        return Tap(first: first, weights: weights.map { fixedPoint($0 / total) })
    }
}

/// Half away from zero: the conversion truncates.
private func fixedPoint(_ weight: Double) -> Int32 {
    let scaled = weight * Double(1 << fractionBits)
    return Int32(scaled < 0 ? scaled - 0.5 : scaled + 0.5)
}

private func weight(_ distance: Double, _ interpolation: Preprocessing.Interpolation) -> Double {
    let x = abs(distance)
    switch interpolation {
    case .bilinear:
        return x < 1 ? 1 - x : 0
    case .bicubic:
        let a = -0.5
        if x < 1 { return ((a + 2) * x - (a + 3)) * x * x + 1 }
        if x < 2 { return (((x - 5) * x + 8) * x - 4) * a }
        return 0
    }
}
